package lab

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// frame serializes layers into an Ethernet frame.
func frame(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ls...))
	return buf.Bytes()
}

func ethernet(proto layers.EthernetType) *layers.Ethernet {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	return &layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: proto}
}

func ip4(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst), Protocol: proto}
}

func ip6(src, dst string, next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst), NextHeader: next}
}

func samples(t testing.TB) map[string][]byte {
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true, ACK: true}
	word := gopacket.Payload("hello")
	return map[string][]byte{
		"direct": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("192.168.1.1", "192.168.2.1", layers.IPProtocolTCP), tcp, word),
		"vxlan": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("10.30.0.206", "10.30.1.66", layers.IPProtocolUDP),
			&layers.UDP{SrcPort: 55555, DstPort: 4789}, &layers.VXLAN{ValidIDFlag: true, VNI: 4096},
			ethernet(layers.EthernetTypeIPv4), ip4("192.168.1.1", "192.168.2.1", layers.IPProtocolTCP), tcp, word),
		"ipip": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("10.30.0.206", "10.30.1.66", layers.IPProtocolIPv4),
			ip4("192.168.1.1", "192.168.2.1", layers.IPProtocolTCP), tcp, word),
		"direct v6": frame(t, ethernet(layers.EthernetTypeIPv6), ip6("fd10::1", "fd10::2:1", layers.IPProtocolTCP), tcp, word),
		"vxlan v6": frame(t, ethernet(layers.EthernetTypeIPv6), ip6("fd30::206", "fd31::66", layers.IPProtocolUDP),
			&layers.UDP{SrcPort: 55555, DstPort: 4789}, &layers.VXLAN{ValidIDFlag: true, VNI: 4096},
			ethernet(layers.EthernetTypeIPv6), ip6("fd10::1", "fd10::2:1", layers.IPProtocolTCP), tcp, word),
		"vxlan without VNI": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("10.30.0.206", "10.30.1.66", layers.IPProtocolUDP),
			&layers.UDP{SrcPort: 55555, DstPort: 4789}, &layers.VXLAN{VNI: 4096}, word),
		"v6 in v4": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("10.30.0.206", "10.30.1.66", layers.IPProtocolIPv6),
			ip6("fd10::1", "fd10::2:1", layers.IPProtocolTCP), tcp, word),
		"v4 in v6": frame(t, ethernet(layers.EthernetTypeIPv6), ip6("fd30::206", "fd31::66", layers.IPProtocolIPv4),
			ip4("192.168.1.1", "192.168.2.1", layers.IPProtocolTCP), tcp, word),
		"later fragment of ipip": frame(t, ethernet(layers.EthernetTypeIPv4),
			&layers.IPv4{Version: 4, TTL: 64, SrcIP: net.IP{10, 30, 0, 206}, DstIP: net.IP{10, 30, 1, 66}, Protocol: layers.IPProtocolIPv4, FragOffset: 100}, word),
		"udp to another port": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("10.0.0.1", "10.0.0.2", layers.IPProtocolUDP),
			&layers.UDP{SrcPort: 1, DstPort: 53}, word),
		"arp": frame(t, ethernet(layers.EthernetTypeARP), &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: make([]byte, 6), SourceProtAddress: []byte{10, 0, 0, 1}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 0, 0, 2},
		}),
		"cut": frame(t, ethernet(layers.EthernetTypeIPv4), ip4("10.0.0.1", "10.0.0.2", layers.IPProtocolTCP))[:20],
	}
}

func TestDecodePacket(t *testing.T) {
	const inner = "192.168.1.1:4000 > 192.168.2.1:80 tcp SYN,ACK"
	const inner6 = "[fd10::1]:4000 > [fd10::2:1]:80 tcp SYN,ACK"
	want := map[string]struct {
		encap        Encapsulation
		vni          uint32
		outer, inner string
		payload      string
	}{
		"direct":                 {EncapNone, 0, inner, inner, "hello"},
		"vxlan":                  {EncapVXLAN, 4096, "10.30.0.206:55555 > 10.30.1.66:4789 udp", inner, "hello"},
		"ipip":                   {EncapIPIP, 0, "10.30.0.206 > 10.30.1.66 4", inner, "hello"},
		"direct v6":              {EncapNone, 0, inner6, inner6, "hello"},
		"vxlan v6":               {EncapVXLAN, 4096, "[fd30::206]:55555 > [fd31::66]:4789 udp", inner6, "hello"},
		"vxlan without VNI":      {EncapNone, 0, "10.30.0.206:55555 > 10.30.1.66:4789 udp", "10.30.0.206:55555 > 10.30.1.66:4789 udp", "\x00\x00\x00\x00\x00\x10\x00\x00hello"},
		"v6 in v4":               {EncapIPIP, 0, "10.30.0.206 > 10.30.1.66 41", inner6, "hello"},
		"v4 in v6":               {EncapIPIP, 0, "fd30::206 > fd31::66 4", inner, "hello"},
		"later fragment of ipip": {EncapNone, 0, "10.30.0.206 > 10.30.1.66 4 fragment", "10.30.0.206 > 10.30.1.66 4 fragment", ""},
		"udp to another port":    {EncapNone, 0, "10.0.0.1:1 > 10.0.0.2:53 udp", "10.0.0.1:1 > 10.0.0.2:53 udp", "hello"},
		"arp":                    {EncapNone, 0, "10.0.0.1 > 10.0.0.2 arp request", "10.0.0.1 > 10.0.0.2 arp request", ""},
		"cut":                    {EncapNone, 0, "not IP", "not IP", ""},
	}
	for name, data := range samples(t) {
		t.Run(name, func(t *testing.T) {
			p := decodePacket(data, defaultVXLANPort)
			w := want[name]
			assert.Equal(t, w.encap, p.Encap)
			assert.Equal(t, w.vni, p.VNI)
			assert.Equal(t, w.outer, p.Outer.String())
			assert.Equal(t, w.inner, p.Inner.String())
			assert.Equal(t, w.payload, string(p.Inner.Payload))
		})
	}
}

func TestHeaders(t *testing.T) {
	all := samples(t)
	for name, want := range map[string][]string{
		"direct": {"bare   192.168.1.1:4000 > 192.168.2.1:80 tcp SYN,ACK, ttl 64, 45 bytes"},
		"ipip": {
			"outer  10.30.0.206 > 10.30.1.66 proto 4, ttl 64, 65 bytes (IP in IP)",
			"inner  192.168.1.1:4000 > 192.168.2.1:80 tcp SYN,ACK, ttl 64, 45 bytes",
		},
		"vxlan v6": {
			"outer  [fd30::206]:55555 > [fd31::66]:4789 udp, ttl 64, 135 bytes, VXLAN VNI 4096",
			"inner  [fd10::1]:4000 > [fd10::2:1]:80 tcp SYN,ACK, ttl 64, 65 bytes",
		},
		"arp": {"bare   10.0.0.1 > 10.0.0.2 arp request"},
		"cut": {"bare   not IP"},
	} {
		assert.Equal(t, want, decodePacket(all[name], defaultVXLANPort).Headers(), name)
	}
}

func FuzzDecodePacket(f *testing.F) {
	for _, data := range samples(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := decodePacket(data, defaultVXLANPort)
		assert.NotEmpty(t, p.String())
		assert.NotEmpty(t, p.Headers())
		if p.Encap == EncapNone {
			assert.Equal(t, p.Outer, p.Inner)
		}
	})
}

func TestFlightOwnsItsPacketsOnly(t *testing.T) {
	p := decodePacket(samples(t)["vxlan"], defaultVXLANPort)
	frames := []nodeFrame{{node: "worker-1", Packet: p}}
	lost := flight{request: ProbeRequest{Kind: ProbeTCP}, to: netip.MustParseAddrPort("192.168.2.1:80"), localPort: 4000, word: []byte("other")}
	assert.True(t, lost.owns(frames)(p), "a connection without a word is known by its ports")
	back := lost
	back.to, back.localPort = netip.MustParseAddrPort("192.168.1.1:4000"), 80
	assert.True(t, back.owns(frames)(p), "and so is its reply")
	elsewhere := lost
	elsewhere.localPort = 4001
	assert.False(t, elsewhere.owns(frames)(p))

	echoed := lost
	echoed.echoed = true
	assert.False(t, echoed.owns(frames)(p), "the same ports, but the connection of another place")
	echoed.word = []byte("ell")
	assert.True(t, echoed.owns(frames)(p))
	translated := echoed
	translated.localPort = 5000
	assert.True(t, translated.owns(frames)(p), "behind a translated port")
	p.Inner.Payload = nil
	assert.True(t, translated.owns(frames)(p), "other packets of the connection")
	p.Inner.SrcPort = 5000
	assert.False(t, translated.owns(frames)(p))
}
