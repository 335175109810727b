package annotation

import (
	"strconv"
	"strings"
)

// Limits bound what a pod sends (egress) and gets (ingress); 0 is no limit.
type Limits struct {
	Ingress, Egress Limit
}

// Limit is the limits of one direction.
type Limit struct {
	Bandwidth      uint64 // bits per second
	Burst          uint64 // bits that may pass at once; 0 leaves it to whoever programs it
	Peakrate       uint64 // bits per second within a burst
	Minburst       uint64 // bytes that may pass at once at the peak rate
	PacketRate     uint64 // packets per second
	PacketBurst    uint64 // packets that may pass at once
	MaxConnections uint64
}

const (
	qos        = "qos.projectcalico.org/"
	kubernetes = "kubernetes.io/"
)

// isLimit tells whether an annotation is about limits.
func isLimit(key string) bool {
	return strings.HasPrefix(key, qos) || key == kubernetes+"ingress-bandwidth" || key == kubernetes+"egress-bandwidth"
}

// What a rate may be: below a kilobit a second a single packet would take seconds.
const (
	minRate = 1_000
	maxRate = 1_000_000_000_000_000
	maxSize = 1 << 40
)

func limitsOf(annotations map[string]string) (l Limits, err error) {
	for _, direction := range []struct {
		name  string
		limit *Limit
	}{{"ingress", &l.Ingress}, {"egress", &l.Egress}} {
		name, d := direction.name, direction.limit
		for _, q := range []struct {
			key      string
			into     *uint64
			min, max uint64
		}{
			{kubernetes + name + "-bandwidth", &d.Bandwidth, minRate, maxRate},
			{qos + name + "Bandwidth", &d.Bandwidth, minRate, maxRate}, // beats the form before
			{qos + name + "Burst", &d.Burst, minRate, maxRate},
			{qos + name + "Peakrate", &d.Peakrate, minRate, maxRate},
			{qos + name + "Minburst", &d.Minburst, 1, maxSize},
			{qos + name + "PacketRate", &d.PacketRate, 1, maxSize},
			{qos + name + "PacketBurst", &d.PacketBurst, 1, maxSize},
			{qos + name + "MaxConnections", &d.MaxConnections, 1, maxSize},
		} {
			text, ok := annotations[q.key]
			if !ok {
				continue
			}
			n, ok := Quantity(text)
			if !ok {
				return l, bad(q.key, text, "is not a quantity; write it as 10M or 512Ki")
			}
			if n < q.min || n > q.max {
				return l, bad(q.key, text, "is out of range; use "+strconv.FormatUint(q.min, 10)+" to "+strconv.FormatUint(q.max, 10))
			}
			*q.into = n
		}
		for _, needs := range []struct {
			has  uint64
			key  string
			of   uint64
			need string
		}{
			{d.Burst, "Burst", d.Bandwidth, "Bandwidth"},
			{d.Peakrate, "Peakrate", d.Bandwidth, "Bandwidth"},
			{d.Minburst, "Minburst", d.Peakrate, "Peakrate"},
			{d.PacketBurst, "PacketBurst", d.PacketRate, "PacketRate"},
		} {
			if needs.has > 0 && needs.of == 0 {
				return l, bad(qos+name+needs.key, annotations[qos+name+needs.key], "needs "+qos+name+needs.need+" beside it")
			}
		}
		if d.Peakrate > 0 && d.Peakrate <= d.Bandwidth {
			return l, bad(qos+name+"Peakrate", annotations[qos+name+"Peakrate"], "is not above the bandwidth")
		}
	}
	return l, nil
}
