package links

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

func message(family byte, index int, name string, up bool) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
	}
	return nlsock.AttrString(b, unix.IFLA_IFNAME, name)
}

func TestLinksComeChangeAndGo(t *testing.T) {
	var tab Table
	c, ok := tab.On(unix.RTM_NEWLINK, message(0, 7, "cali1", false))
	assert.True(t, ok)
	assert.Equal(t, Change{After: Link{7, "cali1", false}}, c)
	_, ok = tab.On(unix.RTM_NEWLINK, message(0, 7, "cali1", false))
	assert.False(t, ok, "nothing new")
	c, ok = tab.On(unix.RTM_NEWLINK, message(0, 7, "cali1", true))
	assert.True(t, ok)
	assert.True(t, c.After.Up)

	_, ok = tab.On(unix.RTM_NEWLINK, message(0, 7, "renamed", true))
	assert.True(t, ok)
	_, ok = tab.ByName("cali1")
	assert.False(t, ok)

	// A device made anew under the name before the removal of the old one is read.
	tab.On(unix.RTM_NEWLINK, message(0, 8, "renamed", true))
	tab.On(unix.RTM_DELLINK, message(0, 7, "renamed", true))
	l, ok := tab.ByName("renamed")
	assert.True(t, ok)
	assert.Equal(t, 8, l.Index)
	assert.Equal(t, "renamed", tab.Name(8))

	_, ok = tab.On(unix.RTM_DELLINK, message(unix.AF_BRIDGE, 8, "renamed", true))
	assert.False(t, ok, "it only left a bridge")
	_, ok = tab.ByName("renamed")
	assert.True(t, ok)
	c, ok = tab.On(unix.RTM_DELLINK, message(0, 8, "renamed", true))
	assert.True(t, ok)
	assert.Equal(t, Link{}, c.After)
	assert.Empty(t, tab.Name(8))
}
