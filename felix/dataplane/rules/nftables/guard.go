package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/links"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// What a workload sends under a source that is not its own is dropped as it comes in on the workload's device, by a chain
// of the family netdev. In raw-PREROUTING the same costs twice to three times as much, since all packets of the node pass
// there; that is where it is done as long as the kernel refuses a chain. Each device whose name is a workload's has its
// chain, whether a workload is known or not, but for one of which none is known and that is down, as a pod's is while it is made:
// nothing comes in by it, and it would be written again as soon as the pod is known.
//
// The devices are named one by one. Newer kernels take the beginning of their names as well, but nft(8) of before that, as
// in Debian 12, then lists nothing any more, not even others' tables.

// refused is the chain for packets under a source that is not the workload's own.
const refused = "refused"

// guardPrefix begins the names of devices' chains.
const guardPrefix = "from-"

// guards is the table of the guards.
type guards struct {
	*family
	log    *slog.Logger
	route  *nlsock.Conn // to ask for devices
	events *nlsock.Conn // of devices
	links  links.Table
	listed bool // links is what the kernel has
	dirty  bool // a device came or went
	told   bool // something new was told, and the chains that are wanted are of before
	// missing: a workload's device has no chain. Before Linux 6.16 there is none for a device that is not there.
	missing bool
	lack    error            // why the kernel has no guards
	made    map[string]chain // of devices, as long as nothing new was told of their workloads
	// lost are devices that went while they had a chain: where chains go with their devices, nothing is said of it.
	lost names
}

// newGuards are guards that know of no kernel yet.
func newGuards() *guards {
	return &guards{family: newFamily(nft.NetDev), made: map[string]chain{}, lost: names{}}
}

func (g *guards) open(log *slog.Logger) (err error) {
	g.log = log
	if g.route, err = nlsock.Dial(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if g.events, err = nlsock.Dial(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK); err != nil {
		return errors.Join(err, g.route.Close())
	}
	return nil
}

func (g *guards) close() error { return errors.Join(g.route.Close(), g.events.Close()) }

// note takes a change of the desired firewall.
func (g *guards) note(f desired.FirewallDelta) {
	c := f.Workloads
	g.told = g.told || f.Settings != nil || !c.Empty()
	for name := range c.Removed {
		delete(g.made, name)
	}
	for name := range c.Set {
		delete(g.made, name)
	}
}

// Guard writes the guards of the workloads that Update told of, and no more: it is called before their devices are set up, so that
// none lets anything in without its guard. What fails is tried again by Apply, which tells of it.
func (d *Driver) Guard(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.guardSources(ctx)
}

// guardSources makes the guards agree with the devices, and leaves to raw-PREROUTING what they cannot do.
func (d *Driver) guardSources(ctx context.Context) error {
	m, g := d.model, d.guards
	var err error
	if g.lack == nil {
		var refusal error
		if refusal, err = d.tryGuards(ctx); refusal != nil {
			g.log.Info("sources of workloads are looked up in raw-PREROUTING, which all packets pass: the kernel takes no chains on devices", "reason", refusal)
			g.lack = refusal
			_, _ = d.conn.Transact(ctx, unix.NFNL_SUBSYS_NFTABLES, []nlsock.Message{g.Delete()}) // half a table is worse than none
		}
		g.stale = g.stale || refusal != nil || err != nil
	}
	if guarded := g.lack == nil && err == nil && !g.missing; d.guarded != guarded {
		d.guarded = guarded
		m.TouchWorkloads()
	}
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", g.Table, err)
	}
	return nil
}

// tryGuards returns what the kernel refuses to have, or else what went wrong.
func (d *Driver) tryGuards(ctx context.Context) (refusal, err error) {
	m, g := d.model, d.guards
	if !g.listed {
		if err := g.links.Load(ctx, g.route); err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		g.listed, g.dirty = true, true
	}
	if g.stale { // what is wanted depends on what is there, as long as not all workloads are known
		if err := g.load(ctx, d.conn); err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		g.dirty = true
		clear(g.lost)
	}
	if g.dirty || g.told {
		g.wantBases(g.wanted(m, d.whole))
		g.dirty, g.told, g.missing = false, false, false
	}
	for {
		failed, err := d.agree(ctx, g.family)
		if err != nil || len(failed) == 0 {
			return nil, err
		}
		for o, err := range failed {
			if !strings.HasPrefix(o.Key, guardPrefix) || !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", o, err), nil
			}
			g.dropChain(o.Key) // it is tried again when devices or workloads change
			g.missing = true
		}
	}
}

// settled tells whether the guards are as they should be, as far as the kernel has any.
func (g *guards) settled() bool { return g.lack != nil || !g.dirty && !g.stale && g.inSync() }

// wanted returns the chains of all devices that are a workload's, or are to be. As long as not all workloads are known,
// chains of before may be theirs.
func (g *guards) wanted(m *model.Model, whole bool) map[string]chain {
	out := map[string]chain{refused: {rules: refusals()}}
	for name := range m.Workloads {
		out[guardPrefix+name] = g.guard(name, m.Workloads[name])
	}
	for name := range g.links.Names() {
		_, known := m.Workloads[name]
		l, _ := g.links.ByName(name)
		if !known && l.Up && (whole || !g.guarded(name)) && ofWorkload(name, m.Settings) {
			out[guardPrefix+name] = g.guard(name, desired.Workload{})
		}
	}
	wanted := func(device string) bool { _, ok := out[guardPrefix+device]; return ok }
	maps.DeleteFunc(g.made, func(device string, _ chain) bool { return !wanted(device) })
	maps.DeleteFunc(g.lost, func(device string, _ struct{}) bool { return !wanted(device) })
	return out
}

// guarded tells whether a device of this name has its chain.
func (g *guards) guarded(device string) bool {
	_, yes := g.chains.Actual(guardPrefix + device)
	return yes
}

// guard is the chain of a device. All are asked for whenever one comes, goes or changes, and making them is the greater part of that.
func (g *guards) guard(device string, w desired.Workload) chain {
	c, made := g.made[device]
	if !made {
		c = guard(device, w)
		g.made[device] = c
	}
	return c
}

func ofWorkload(device string, s desired.Settings) bool {
	for _, p := range s.WorkloadPrefixes {
		if strings.HasPrefix(device, p) {
			return true
		}
	}
	return false
}

// guard makes the chain of a device. Sources are compared with the workload's own addresses before they are looked up in the
// routes: that look-up takes more than 100 ns a packet, the comparison 25.
func guard(device string, w desired.Workload) chain {
	out := chain{base: &nft.Base{Type: "filter", Hook: unix.NF_NETDEV_INGRESS, Priority: -300, Device: device}}
	add := func(text string, p netip.Prefix) {
		c, proto := compiler{family: nft.IP4}, uint16(unix.ETH_P_IP)
		if p.Addr().Is6() {
			c.family, proto = nft.IP6, unix.ETH_P_IPV6
		}
		out.rules = append(out.rules, newRule(text+" "+p.String(),
			c.net(etherType(proto), source, []netip.Prefix{p.Masked()}, false).Verdict(accept)))
	}
	for _, a := range w.Addresses {
		add("own address", netip.PrefixFrom(a, a.BitLen()))
	}
	out.rules = append(out.rules, newRule("source is routed to the workload",
		nft.Expr{}.Fib(unix.NFT_FIB_RESULT_OIF, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF).Equal(word(0), true).Verdict(accept)))
	for _, p := range w.AllowedSources {
		add("allowed source", p)
	}
	out.rules = append(out.rules, newRule("other sources", nft.Expr{}.Verdict(nft.Verdict{Code: nft.Goto, Chain: refused})))
	return out
}

// refusals drop IP. What is neither IP nor may become it, such as ARP, has no source to look up. A tag that is still there
// was inside another; the kernel takes off both if they name no VLAN, and would go on with what is in them.
func refusals() (out []rule) {
	for _, p := range []struct {
		text  string
		proto uint16
	}{
		{"source is not routed to the workload it came from", unix.ETH_P_IP},
		{"source is not routed to the workload it came from, IPv6", unix.ETH_P_IPV6},
		{"VLAN in a VLAN", unix.ETH_P_8021Q},
		{"VLAN in a VLAN, 802.1ad", unix.ETH_P_8021AD},
	} {
		out = append(out, newRule(p.text, etherType(p.proto).Counter().Verdict(drop)))
	}
	return out
}

func etherType(proto uint16) nft.Expr {
	return nft.Expr{}.Meta(unix.NFT_META_PROTOCOL, nft.Reg).Equal(be16(proto), false)
}

// watchDevices calls wake when a device that needs a guard comes, or one that had it goes, until ctx ends.
func (d *Driver) watchDevices(ctx context.Context, wake dataplane.Wake) error {
	return d.guards.events.Listen(ctx, func(e nlsock.Event) {
		if d.onDevice(e) {
			wake()
		}
	}, func() {
		d.Resync()
		wake()
	})
}

func (d *Driver) onDevice(e nlsock.Event) bool {
	if e.Kind != unix.RTM_NEWLINK && e.Kind != unix.RTM_DELLINK {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.guards
	c, ok := g.links.On(e.Kind, e.Body)
	if !ok || !ofWorkload(c.Before.Name, d.model.Settings) && !ofWorkload(c.After.Name, d.model.Settings) {
		return false
	}
	due := g.on(c, func(device string) bool { _, known := d.model.Workloads[device]; return known })
	g.dirty = g.dirty || due
	return due && g.lack == nil
}

// on takes in what has become of a device that is, or was, a workload's, and tells whether there is something to do.
func (g *guards) on(c links.Change, known func(device string) bool) bool {
	name, came := c.After.Name, c.Before.Index == 0
	switch {
	case c.After.Index == 0: // gone; if its chain has gone along, the removal of that is refused, and all is read anew
		if g.guarded(c.Before.Name) {
			g.lost[c.Before.Name] = struct{}{}
			return true
		}
		return false
	case !came && c.Before.Name != name:
		g.stale = g.stale || g.guarded(c.Before.Name) || g.guarded(name)
		return true
	case g.guarded(name): // as a rule since it came: that it did is read after its workload is programmed
		_, lost := g.lost[name]
		delete(g.lost, name)
		g.stale = g.stale || lost
		return lost
	case known(name):
		return g.missing // or else its chain is due already
	}
	return c.After.Up
}
