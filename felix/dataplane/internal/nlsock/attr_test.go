package nlsock

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAttributes(t *testing.T) {
	b := AttrString(nil, 1, "calico")
	b = AttrU32(b, 2, 7)
	b = AttrBE32(b, 3, 8)
	b = Nest(b, 4, func(b []byte) []byte { return Attr(b, 1, []byte{1, 2, 3}) })
	assert.Zero(t, len(b)%4)
	got := maps.Collect(Attrs(b))
	assert.Equal(t, "calico", CString(got[1]))
	assert.Equal(t, uint32(7), U32(got[2]))
	assert.Equal(t, uint32(8), BE32(got[3]))
	assert.Equal(t, []byte{1, 2, 3}, maps.Collect(Attrs(got[4]))[1], "the nested flag is not part of the type")
	assert.Zero(t, U32([]byte{1}))
	assert.Zero(t, BE32(nil))
}

func TestMessages(t *testing.T) {
	b := appendMessage(nil, Message{Type: 16, Body: []byte{1, 2, 3, 4, 5}}, unix.NLM_F_REQUEST, 9, 42)
	b = appendMessage(b, Message{Type: 17}, 0, 10, 42)
	assert.Len(t, b, Message{Body: make([]byte, 5)}.Size()+Message{}.Size())
	var kinds []uint16
	require.NoError(t, eachMessage(b, func(h header, body []byte) error {
		kinds = append(kinds, h.kind)
		assert.Equal(t, uint32(42), h.port)
		return nil
	}))
	assert.Equal(t, []uint16{16, 17}, kinds)
}

func FuzzMessages(f *testing.F) {
	f.Add(appendMessage(nil, Message{Type: 16, Body: AttrString(nil, 1, "x")}, 0, 1, 1))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = eachMessage(b, func(h header, body []byte) error {
			_ = parseError(h, body)
			for _, v := range Attrs(body) {
				_, _, _ = CString(v), U32(v), BE32(v)
			}
			return nil
		})
	})
}
