package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// repairRounds is how often each thing is taken away.
const repairRounds = 9

// pingPatience is how long an answer between two pods may take; a request without one is followed by another.
const pingPatience = 20 * time.Millisecond

// repair is something that felix put into a node's kernel, and that somebody takes out.
type repair struct {
	name string
	take string
	show string // prints the same as before when all that went is back
}

// repairs measures how long something that felix put into the kernel of a node stays away when it is removed by hand: from the
// kernel's first word of the removal to its last one before all is there again. After the underlay's link was down, it measures
// until a pod reaches one of another node.
func (b *bench) repairs(ctx context.Context) error {
	const (
		routes = `ip route show root 192.168.0.0/16 | sort; `
		vxlan  = routes + `ip -br -4 addr show vxlan.calico; bridge fdb show dev vxlan.calico | sort; ip neigh show dev vxlan.calico nud permanent | sort`
		chain  = `ip calico filter-FORWARD`
		set    = `ip calico cali40network-ip-pools`
	)
	for _, part := range []struct {
		mode    Mode
		repairs []repair
	}{
		{ModeDirect, []repair{
			{"route", `ip route del $(ip route show root 192.168.0.0/16 | awk '/via 10.30.0.56/ {print $1; exit}')`, routes},
			{"flush", `ip route flush proto 80`, routes},
			{"rule", `nft flush chain ` + chain, `nft -s list chain ` + chain},
			{"set", `nft flush set ` + set, `nft -s list set ` + set},
		}},
		{ModeVXLAN, []repair{
			{"neigh", `ip neigh del $(ip neigh show dev vxlan.calico nud permanent | awk '{print $1; exit}') dev vxlan.calico`, vxlan},
			{"fdb", `bridge fdb del $(bridge fdb show dev vxlan.calico | awk '/dst 10.30.0.56 / {print $1; exit}') dev vxlan.calico dst 10.30.0.56`, vxlan},
			{"link", `ip link del vxlan.calico`, vxlan},
		}},
		{ModeIPIP, []repair{
			{"tunl0", `ip link del tunl0`, routes + `ip -br -4 addr show tunl0`},
		}},
	} {
		if err := b.enter(ctx, part.mode); err != nil {
			return err
		}
		for _, r := range part.repairs {
			if r.name == "tunl0" {
				out, err := b.shell(ctx, "ip -d link show tunl0")
				if err != nil {
					return err
				}
				if strings.Contains(out, "remote any local any") {
					fmt.Fprintln(b.Log, "repair.tunl0 is left out: the kernel keeps the device that the module ipip makes for itself")
					continue
				}
			}
			if err := b.repeat(r.name, func() (time.Duration, error) { return b.repair(ctx, r) }); err != nil {
				return err
			}
		}
		if part.mode == ModeDirect {
			if err := b.repeat("linkup", func() (time.Duration, error) { return b.linkUp(ctx) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// repeat prints the middle of several measurements.
func (b *bench) repeat(name string, measure func() (time.Duration, error)) error {
	var took []float64
	for range repairRounds {
		d, err := measure()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		took = append(took, d.Seconds())
	}
	b.figure("repair."+name, median(took), "s", 0, "")
	return nil
}

// damaged is the node on which things are taken away.
const damaged = "worker-1"

func (b *bench) shell(ctx context.Context, command string) (string, error) {
	return b.muslin.Run(ctx, damaged, "sh", "-ec", command)
}

func (b *bench) repair(ctx context.Context, r repair) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	before, err := b.shell(ctx, r.show)
	if err != nil {
		return 0, err
	}
	w := &kernelWatch{}
	err = errors.Join(
		w.listen(ctx, b.muslin, damaged, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE),
		w.listen(ctx, b.muslin, damaged, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES),
	)
	w.start()
	if err == nil {
		_, err = b.shell(ctx, r.take)
	}
	if err == nil {
		_, err = eventually(ctx, func() (struct{}, error) {
			now, err := b.shell(ctx, r.show)
			if err == nil && now != before {
				err = fmt.Errorf("there is\n%s\ninstead of\n%s", now, before)
			}
			return struct{}{}, err
		})
	}
	first, last, watchErr := w.end()
	if err := errors.Join(err, watchErr); err != nil {
		return 0, err
	}
	if !last.After(first) {
		return 0, fmt.Errorf("nothing was put back after %q", r.take)
	}
	return last.Sub(first), nil
}

// linkUp takes the node's interface down, and measures from the order to take it up until pod-1 reaches pod-2. The default route,
// which is the host's own, is given back with it.
func (b *bench) linkUp(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	to, err := addressOf(ctx, b.muslin, "pod-2")
	if err != nil {
		return 0, err
	}
	way, err := b.shell(ctx, "ip route show default; ip link set "+defaultInterface+" down")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	var g errgroup.Group
	g.Go(func() error {
		_, err := b.shell(ctx, "ip link set "+defaultInterface+" up; ip route add "+strings.TrimSpace(way))
		return err
	})
	_, err = eventually(ctx, func() (time.Duration, error) {
		return b.muslin.ping(ctx, "pod-1", to, []byte("repaired"), pingPatience)
	})
	took := time.Since(began)
	if err := errors.Join(err, g.Wait()); err != nil {
		return 0, err
	}
	return took, b.muslin.AwaitRoutes(ctx, b.topology, ModeDirect)
}
