package agent

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/felix/dataplane"
)

func TestRefusals(t *testing.T) {
	object := &dataplane.ObjectError{Object: dataplane.Object{Kind: dataplane.KindRule, Key: "x"}, Err: errors.New("no")}
	socket := errors.New("no socket")
	for _, c := range []struct {
		err     error
		objects int
		only    bool
	}{
		{nil, 0, true},
		{socket, 0, false},
		{object, 1, true},
		{errors.Join(object, errors.Join(object)), 2, true},
		{errors.Join(object, socket), 1, false},
		{fmt.Errorf("move: %w", object), 1, true},
		{fmt.Errorf("move: %w", errors.Join(object, socket)), 1, false},
	} {
		objects, only := refusals(c.err)
		assert.Len(t, objects, c.objects, c.err)
		assert.Equal(t, c.only, only, c.err)
	}
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
