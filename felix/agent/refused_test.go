package agent

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/felix/dataplane"
)

func TestCommittedOnly(t *testing.T) {
	object := &dataplane.ObjectError{Object: dataplane.Object{Kind: dataplane.KindRule, Key: "x"}, Err: errors.New("no")}
	assert.True(t, committedOnly(nil))
	assert.True(t, committedOnly(errors.Join(object, errors.Join(object))))
	assert.Equal(t, []dataplane.Object{object.Object, object.Object}, refusals(errors.Join(object, errors.Join(object))))
	assert.Empty(t, refusals(nil))
	assert.False(t, committedOnly(errors.Join(object, errors.New("no socket"))))
}

func TestWhatTheKernelRefusesConcernsFew(t *testing.T) {
	rule := func(key string) dataplane.Object { return dataplane.Object{Kind: dataplane.KindRule, Key: key} }
	set := func(key string) dataplane.Object { return dataplane.Object{Kind: dataplane.KindSet, Key: key} }
	for o, want := range map[dataplane.Object]bool{
		rule("ip cali-pi-np/shop/web"):            false, // nftables
		rule("ip6 cali-pro-kns.shop"):             false,
		rule("ip cali-tw-0123"):                   false,
		rule("IPv4 filter cali-po-np/shop/web"):   false, // iptables
		set("ip cali40s-a"):                       false,
		set("cali60s:a"):                          false,
		set("ip cali-to-wl-dispatch cali40other"): false,
		set("ip cali-to-wl-dispatch cali1"):       true,
		set("ip cali-to-wl-dispatch"):             true,
		rule("ip filter-FORWARD"):                 true,
		rule("IPv4 filter cali-from-wl-dispatch"): true,
		rule("IPv4 filter cali-to-wl-dispatch-4"): true,
		rule("table calico"):                      true,
		rule("IPv4 filter FORWARD"):               true,
	} {
		assert.Equal(t, want, mayConcern(o, "cali1"), o.String())
	}
}
