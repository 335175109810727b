package startup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/client"
)

// settle is how long a burst of changes is waited out: an address that is replaced goes before the new one comes.
const settle = 200 * time.Millisecond

// pollDefault is how often the addresses are looked at although nothing was heard (AUTODETECT_POLL_INTERVAL).
const pollDefault = 60 * time.Second

// Follow keeps the node's registration at the host's addresses until ctx ends: it looks again when changed says that
// something happened to them, and every AUTODETECT_POLL_INTERVAL. What IP and IP6 do not leave to detection stays as it is.
// A detection that fails, and an address that another node has, leave what is registered: taking it away would take the
// node's pods off every other node, for a link that may be back in a second.
func Follow(ctx context.Context, cfg Config, typha Typha, changed <-chan struct{}) error {
	f := follower{cfg: cfg, typha: typha}
	backend, err := Backend(cfg.Env)
	if err != nil {
		return err
	}
	interval := pollDefault
	if text := cfg.Env("AUTODETECT_POLL_INTERVAL"); text != "" {
		if interval, err = time.ParseDuration(text); err != nil || interval <= 0 {
			return fmt.Errorf("environment variable AUTODETECT_POLL_INTERVAL: %q is not a time; write 60s", text)
		}
	}
	if backend == api.BackendNone {
		cfg.Log.Info("the node has no addresses to follow", "backend", backend)
		<-ctx.Done()
		return nil
	}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			next.Reset(settle)
			continue
		case <-next.C:
		}
		switch err := f.look(ctx); {
		case err == nil:
			f.trouble = ""
			next.Reset(interval)
		case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrTimeout):
			f.complain(err)
			next.Reset(retry)
		default:
			f.complain(err)
			next.Reset(interval)
		}
	}
}

// follower knows what typha was told last.
type follower struct {
	cfg     Config
	typha   Typha
	known   bool // what is stored was read
	told    facts
	trouble string // what went wrong last, said once
}

// facts are what Follow watches.
type facts struct {
	ipv4, ipv6 netip.Prefix
	interfaces []client.Interface
}

func (f facts) equal(other facts) bool {
	return f.ipv4 == other.ipv4 && f.ipv6 == other.ipv6 && slices.EqualFunc(f.interfaces, other.interfaces, func(a, b client.Interface) bool {
		return a.Name == b.Name && slices.Equal(a.Addresses, b.Addresses)
	})
}

// look registers what changed since the last time.
func (f *follower) look(ctx context.Context) error {
	quiet := f.cfg
	quiet.Log = slog.New(slog.DiscardHandler) // what is found is of interest only when it is new
	p, err := planOf(quiet)
	if err != nil {
		return err
	}
	var missing error
	if !f.known {
		stored, err := f.typha.Register(ctx, client.Registration{ReadOnly: true})
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			return err
		}
		f.told, f.known = factsOf(stored.Node), true
	}
	now := facts{ipv4: p.IPv4, ipv6: p.IPv6, interfaces: p.Interfaces}
	if !f.told.ipv4.IsValid() || !p.keepIPv4 {
		missing = p.lacking
	}
	missing = errors.Join(missing, p.lacking6)
	if p.keepIPv4 && f.told.ipv4.IsValid() || !now.ipv4.IsValid() {
		now.ipv4, p.IPv4 = f.told.ipv4, netip.Prefix{}
	}
	if !now.ipv6.IsValid() {
		now.ipv6 = f.told.ipv6
	}
	if now.equal(f.told) {
		return missing
	}
	p.Pools = nil // pools are proposed at the start
	if _, err := f.typha.Register(ctx, p.Registration); err != nil {
		return fmt.Errorf("register node %s: %w", f.cfg.Node, err)
	}
	f.cfg.Log.Info("the node's addresses changed", "node", f.cfg.Node, "ipv4", now.ipv4, "ipv6", now.ipv6,
		"before_ipv4", f.told.ipv4, "before_ipv6", f.told.ipv6)
	f.told = now
	return missing
}

// complain says what went wrong, once.
func (f *follower) complain(err error) {
	if text := err.Error(); text != f.trouble {
		f.trouble = text
		f.cfg.Log.Warn("the node's addresses cannot be followed now; what is registered stays", "error", err)
	}
}

// factsOf reads what is stored of a node; nothing of one that is not.
func factsOf(n *api.Node) (out facts) {
	if n == nil {
		return out
	}
	if n.Spec.BGP != nil {
		out.ipv4, _ = netip.ParsePrefix(n.Spec.BGP.IPv4Address)
		out.ipv6, _ = netip.ParsePrefix(n.Spec.BGP.IPv6Address)
	}
	for _, i := range n.Spec.Interfaces {
		found := client.Interface{Name: i.Name}
		for _, text := range i.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				found.Addresses = append(found.Addresses, a)
			}
		}
		out.interfaces = append(out.interfaces, found)
	}
	return out
}
