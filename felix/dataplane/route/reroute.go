package route

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// refusedInPlace tells that the kernel may have refused a change of an IPv6 route because of the very route that it
// changes. For an on-link gateway it looks up the way to it as the table is now, and refuses one that leads through another
// device (ip6_route_check_nh_onlink in net/ipv6/route.c). The gateway of a VXLAN route is the remote end of the tunnel, whose
// address is of the block that the route is for: while the block's route is a direct one, the kernel takes no other.
func refusedInPlace(r desired.Route, there bool, err error) bool {
	return there && r.Dst.Addr().Is6() && errors.Is(err, unix.EINVAL)
}

// reroute makes routes anew that could not be changed in place: all old ones go first, then the new ones come, without
// anything in between.
func (t *Table) reroute(ctx context.Context, routes []desired.Route) error {
	if len(routes) == 0 {
		return nil
	}
	var msgs []nlsock.Message
	for _, r := range routes {
		old, _ := t.routes.Actual(r.Key())
		body := encode(old, t.index)
		body[6] = unix.RT_SCOPE_NOWHERE
		msgs = append(msgs, nlsock.Message{Type: unix.RTM_DELROUTE, Body: body})
	}
	for _, r := range routes {
		msgs = append(msgs, nlsock.Message{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: encode(r, t.index)})
	}
	results, err := t.conn.Send(ctx, msgs)
	if err != nil {
		return err
	}
	for i, r := range routes {
		if err := results[len(routes)+i]; err != nil {
			if results[i] == nil {
				t.deleteActual(r.Key())
			}
			t.failures.Add(dataplane.KindRoute, r.Key().String(), fmt.Errorf("add %s: %w", r, err))
			continue
		}
		t.setActual(r)
	}
	return nil
}
