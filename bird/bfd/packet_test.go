package bfd

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPacket reads and writes packets byte by byte.
func TestPacket(t *testing.T) {
	p := Packet{
		Diagnostic: NeighborDown, State: Init, Poll: true, Multiplier: 5, Sender: 0x01020304, Receiver: 0x0a0b0c0d,
		MinTx: 300 * time.Millisecond, MinRx: 50 * time.Millisecond,
	}
	wire := "23a00518" + "01020304" + "0a0b0c0d" + "000493e0" + "0000c350" + "00000000"
	require.Equal(t, wire, hex.EncodeToString(p.Append(nil)))
	b, _ := hex.DecodeString(wire)
	got, err := Parse(append(b, 1, 2, 3)) // what follows the packet does not matter
	require.NoError(t, err)
	require.Equal(t, p, got)
	require.Equal(t, uint32(0xffffffff), toMicroseconds(2*time.Hour), "what is too long is as long as can be")
}

// TestParseRefuses are the checks of RFC 5880 section 6.8.6 that come before a session is looked for.
func TestParseRefuses(t *testing.T) {
	good := Packet{State: Up, Multiplier: 3, Sender: 1, Receiver: 2, MinTx: time.Second, MinRx: time.Second}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"good":                   {func(b []byte) []byte { return b }, nil},
		"empty":                  {func([]byte) []byte { return nil }, errShort},
		"cut":                    {func(b []byte) []byte { return b[:23] }, errShort},
		"version 0":              {func(b []byte) []byte { b[0] &= 0x1f; return b }, errVersion},
		"length below 24":        {func(b []byte) []byte { b[3] = 23; return b }, errLength},
		"length beyond the data": {func(b []byte) []byte { b[3] = 25; return b }, errLength},
		"multiplier 0":           {func(b []byte) []byte { b[2] = 0; return b }, errMult},
		"multipoint":             {func(b []byte) []byte { b[1] |= bitMultipart; return b }, errMulti},
		"no sender":              {func(b []byte) []byte { clear(b[4:8]); return b }, errSender},
		"up without receiver":    {func(b []byte) []byte { clear(b[8:12]); return b }, errReceiver},
		"init without receiver":  {func(b []byte) []byte { clear(b[8:12]); b[1] = byte(Init) << 6; return b }, errReceiver},
		"down without receiver":  {func(b []byte) []byte { clear(b[8:12]); b[1] = byte(Down) << 6; return b }, nil},
		"authenticated":          {func(b []byte) []byte { b[1] |= bitAuth; b[3] = 26; return append(b, 1, 2) }, errAuth},
		"demand":                 {func(b []byte) []byte { b[1] |= bitDemand; return b }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.change(good.Append(nil)))
			require.ErrorIs(t, err, c.want)
		})
	}
}

// FuzzParse feeds arbitrary bytes: what is accepted is sound, and survives being written and read again, and a session takes
// it whatever it says.
func FuzzParse(f *testing.F) {
	f.Add(Packet{State: Down, Multiplier: 3, Sender: 1, MinTx: time.Second, MinRx: time.Second}.Append(nil))
	f.Add(Packet{State: Up, Poll: true, Multiplier: 255, Sender: 1, Receiver: 7, MinTx: 1}.Append(nil))
	f.Add([]byte{0x20, 0x40, 3, 24})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		if p.Sender == 0 || p.Multiplier == 0 || p.State > Up || p.Receiver == 0 && p.State > Down {
			t.Fatalf("accepted %+v", p)
		}
		again, err := Parse(p.Append(nil))
		require.NoError(t, err)
		require.Equal(t, p, again)
		s := New(0, 7, usual, half)
		for _, now := range []time.Duration{0, time.Second, 2 * time.Second} {
			out := s.Receive(now, p)
			require.False(t, out.Packet.Poll && out.Packet.Final)
			require.LessOrEqual(t, s.Next(), time.Duration(1<<63-1))
			s.Tick(now)
			_ = s.String()
		}
	})
}
