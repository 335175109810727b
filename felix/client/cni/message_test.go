package cni

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/internal/unary"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// FuzzMessage compares with the real library's reading: what it takes is read, field by field; the rest may be refused.
func FuzzMessage(f *testing.F) {
	whole, err := proto.Marshal(&felixv1.AddResponse{HostInterface: "cali1", Mtu: 1400, Addresses: [][]byte{{10, 1, 2, 3}}, Closed: true})
	require.NoError(f, err)
	f.Add(whole)
	f.Add([]byte{0x0d, 1, 2, 3, 4, 0x09, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got struct {
			host   string
			mtu    uint32
			closed bool
		}
		ours := unary.Each(b, func(number int, n uint64, value []byte) error {
			switch {
			case number == 1 && value != nil:
				got.host = string(value)
			case number == 3 && value == nil:
				got.mtu = uint32(n)
			case number == 5 && value == nil:
				got.closed = n != 0
			}
			return nil
		})
		var want felixv1.AddResponse
		theirs := proto.Unmarshal(b, &want)
		if ours != nil || theirs != nil {
			return // groups, texts that are no UTF-8 and the like
		}
		if len(want.ProtoReflect().GetUnknown()) > 0 {
			return // a field of another kind than ours: theirs keeps it apart
		}
		require.Equal(t, want.GetHostInterface(), got.host)
		require.Equal(t, want.GetMtu(), got.mtu)
		require.Equal(t, want.GetClosed(), got.closed)
	})
}
