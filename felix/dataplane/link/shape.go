package link

import (
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/vishvananda/netlink"

	"github.com/muslin-net/muslin/felix/desired"
)

// What a pod gets is bounded by a token bucket (tbf) on the host's end of its pair, what it sends by one on its own end: a
// queue bounds what leaves a device. To lead what comes from the pod through a device of the host's (ifb) instead would take
// it past the chains that look at its source. A pod that may change its own network can take its bound away.

// shapeHandle marks queues as ours: those of others, such as the bandwidth plugin's, are let be where nothing is wanted.
const shapeHandle = 0xca11 << 16

// How long a packet may wait in a queue, beside what a burst takes.
const shapeLatency = 0.025 // seconds

// shape makes the queues of a pair as wanted.
func (d *Driver) shape(outside netlink.Link, want desired.WorkloadLink) error {
	if shaped, known := d.shaped[want.Name]; known && !shaped && want.Ingress == (desired.Shape{}) && want.Egress == (desired.Shape{}) {
		return nil
	}
	delete(d.shaped, want.Name) // until it is done
	all, err := d.list.queues()
	if err == nil {
		err = d.queue(d.handle, outside, all[outside.Attrs().Index], want.Ingress)
	}
	if err != nil {
		return fmt.Errorf("bound what the pod gets: %w", err)
	}
	if want.Netns != "" {
		if err := d.shapePod(outside, want); err != nil {
			return fmt.Errorf("bound what the pod sends: %w", err)
		}
	}
	d.shaped[want.Name] = want.Ingress != (desired.Shape{}) || want.Egress != (desired.Shape{})
	return nil
}

func (d *Driver) shapePod(outside netlink.Link, want desired.WorkloadLink) error {
	ns, in, err := openPod(want.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its pod is about to go
	}
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	defer in.Close()
	inside, err := in.LinkByIndex(outside.Attrs().ParentIndex)
	if err == nil && !peers(inside, outside) {
		err = fmt.Errorf("interface %s in %s is not the other end of %s", inside.Attrs().Name, want.Netns, want.Name)
	}
	if err != nil {
		return err
	}
	all, err := queuesOf(in)
	if err != nil {
		return err
	}
	return d.queue(in, inside, all[inside.Attrs().Index], want.Egress)
}

// queue makes the root queue of a device as wanted; have is ours, nil if there is none.
func (d *Driver) queue(h *netlink.Handle, l netlink.Link, have *netlink.Tbf, want desired.Shape) error {
	switch bucket := bucketFor(l.Attrs().Index, want); {
	case want == (desired.Shape{}) && have == nil:
		return nil
	case want == (desired.Shape{}):
		return d.write(h.QdiscDel(have))
	case have != nil && same(have, bucket):
		return nil
	default:
		return d.write(h.QdiscReplace(bucket))
	}
}

// same compares what the kernel tells of a queue; of the burst at the peak rate it says nothing in the unit that it was given.
func same(a, b *netlink.Tbf) bool {
	return a.Rate == b.Rate && a.Buffer == b.Buffer && a.Limit == b.Limit && a.Peakrate == b.Peakrate
}

// bucketFor is the queue that bounds a device; rates are bytes per second there, and the burst is a time in ticks.
func bucketFor(index int, s desired.Shape) *netlink.Tbf {
	rate, burst := max(1, s.Rate/8), s.Bytes()
	seconds := float64(burst) / float64(rate)
	minburst := s.Minburst
	if s.Peakrate != 0 && minburst == 0 {
		minburst = 64 << 10 // what offloads hand the kernel at once
	}
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: shapeHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     capped(seconds * 1e6 * netlink.TickInUsec()),
		Limit:      capped(float64(rate)*shapeLatency + float64(burst)),
		Peakrate:   s.Peakrate / 8,
		Minburst:   capped(float64(minburst)),
	}
}

func capped(f float64) uint32 { return uint32(min(f, math.MaxUint32)) }

// checkShape compares the queues with what is wanted and names the first difference.
func (d *Driver) checkShape(in *netlink.Handle, inside, outside netlink.Link, want desired.WorkloadLink) error {
	for _, side := range []struct {
		what   string
		handle *netlink.Handle
		link   netlink.Link
		shape  desired.Shape
	}{{"gets", d.handle, outside, want.Ingress}, {"sends", in, inside, want.Egress}} {
		if side.shape == (desired.Shape{}) {
			continue
		}
		all, err := queuesOf(side.handle)
		if err != nil {
			return err
		}
		if have := all[side.link.Attrs().Index]; have == nil || !same(have, bucketFor(side.link.Attrs().Index, side.shape)) {
			return fmt.Errorf("what the pod %s is not bounded to %d bit/s at %s", side.what, side.shape.Rate, side.link.Attrs().Name)
		}
	}
	return nil
}
