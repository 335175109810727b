package tunnel

import (
	"encoding/hex"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/require"
)

// frame is a VXLAN frame with a TCP packet in it, all checksums right.
func frame(t testing.TB) []byte {
	t.Helper()
	serialize := func(l ...gopacket.SerializableLayer) []byte {
		b := gopacket.NewSerializeBuffer()
		require.NoError(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, l...))
		return b.Bytes()
	}
	ethernet := &layers.Ethernet{SrcMAC: probeMAC, DstMAC: probeMAC, EthernetType: layers.EthernetTypeIPv4}
	inner := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: probeOver, DstIP: probeOverPeer}
	tcp := &layers.TCP{SrcPort: 1234, DstPort: 80, SYN: true, Window: 1000}
	require.NoError(t, tcp.SetNetworkLayerForChecksum(inner))
	outer := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: probeUnder, DstIP: probeUnderPeer}
	udp := &layers.UDP{SrcPort: 5555, DstPort: 4789}
	require.NoError(t, udp.SetNetworkLayerForChecksum(outer))
	return serialize(ethernet, outer, udp, &layers.VXLAN{ValidIDFlag: true, VNI: 4096}, gopacket.Payload(serialize(ethernet, inner, tcp, gopacket.Payload("odd"))))
}

func TestWrongChecksums(t *testing.T) {
	good := frame(t)
	spoilt := func(at int, to ...byte) []byte {
		b := slices.Clone(good)
		copy(b[at:], to)
		return b
	}
	const outerIP, outerUDP, innerIP, innerTCP = 14, 34, 34 + 8 + 8 + 14, 34 + 8 + 8 + 14 + 20
	for name, c := range map[string]struct {
		frame []byte
		want  string
		vxlan bool
	}{
		"right":             {good, "", true},
		"padded":            {append(slices.Clone(good), 0, 0, 0), "", true},
		"outer IP":          {spoilt(outerIP+10, 1, 2), "outer IP", true},
		"outer UDP":         {spoilt(outerUDP+6, 1, 2), "outer UDP", true},
		"no outer UDP":      {spoilt(outerUDP+6, 0, 0), "", true},
		"inner IP":          {noUDP(spoilt(innerIP+10, 1, 2)), "inner IP", true},
		"inner TCP":         {noUDP(spoilt(innerTCP+16, 1, 2)), "inner TCP", true},
		"another UDP port":  {spoilt(outerUDP+2, 0, 53), "", false},
		"not IPv4":          {spoilt(12, 0x86, 0xdd), "", false},
		"not UDP":           {spoilt(outerIP+9, 6), "", false},
		"inner is not TCP":  {spoilt(innerIP+9, 17), "", false},
		"cut off":           {good[:50], "", false},
		"length beyond end": {spoilt(outerIP+2, 0xff, 0xff), "", false},
		"empty":             {nil, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			what, vxlan := wrongChecksum(c.frame)
			require.Equal(t, c.want, what)
			require.Equal(t, c.vxlan, vxlan)
		})
	}
}

// noUDP takes the outer checksum, which covers what is inside, away.
func noUDP(frame []byte) []byte {
	frame[34+6], frame[34+7] = 0, 0
	return frame
}

func FuzzWrongChecksum(f *testing.F) {
	f.Add(frame(f))
	f.Add(frame(f)[:70])
	f.Fuzz(func(t *testing.T, b []byte) {
		before := hex.EncodeToString(b)
		_, _ = wrongChecksum(b)
		require.Equal(t, before, hex.EncodeToString(b))
	})
}
