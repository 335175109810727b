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
	want := map[string]struct {
		encap        Encapsulation
		vni          uint32
		outer, inner string
		payload      string
	}{
		"direct":              {EncapNone, 0, inner, inner, "hello"},
		"vxlan":               {EncapVXLAN, 4096, "10.30.0.206:55555 > 10.30.1.66:4789 udp", inner, "hello"},
		"ipip":                {EncapIPIP, 0, "10.30.0.206 > 10.30.1.66 4", inner, "hello"},
		"udp to another port": {EncapNone, 0, "10.0.0.1:1 > 10.0.0.2:53 udp", "10.0.0.1:1 > 10.0.0.2:53 udp", "hello"},
		"arp":                 {EncapNone, 0, "10.0.0.1 > 10.0.0.2 arp request", "10.0.0.1 > 10.0.0.2 arp request", ""},
		"cut":                 {EncapNone, 0, "not IP", "not IP", ""},
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

func FuzzDecodePacket(f *testing.F) {
	for _, data := range samples(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = decodePacket(data, defaultVXLANPort).String()
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
