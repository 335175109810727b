//go:build lab

package check_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/check"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
)

// known is an agent that knows what a test tells it.
type known struct {
	paths        []render.Path
	pools        map[view.Tunnel]string
	capabilities state.Capabilities
}

func (k known) Paths(context.Context) ([]render.Path, error) { return k.paths, nil }

func (k known) TunnelPools(context.Context) (map[view.Tunnel]string, error) { return k.pools, nil }

func (k known) Capabilities(context.Context) (state.Capabilities, error) { return k.capabilities, nil }

// TestMain has the whole process in a network namespace of its own: the check runs on threads of its own choice.
func TestMain(m *testing.M) {
	if os.Getenv("IN_NAMESPACE") == "" {
		if os.Geteuid() != 0 {
			panic("these tests make network namespaces and need root: run them as root, or under unshare -Urnm")
		}
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "IN_NAMESPACE=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	runtime.LockOSThread()
	os.Exit(m.Run())
}

func sh(t *testing.T, command string) {
	t.Helper()
	out, err := exec.Command("sh", "-ec", command).CombinedOutput()
	require.NoError(t, err, "%s\n%s", command, out)
}

// world has this node, a router and two nodes behind it.
func world(t *testing.T) {
	t.Helper()
	sh(t, `ip link set lo up; mount -t tmpfs tmpfs /run; mkdir -p /run/netns
		for n in router two three; do ip netns add $n; ip -n $n link set lo up; done
		ip link add eth0 type veth peer name one netns router
		ip link add eth0 netns two type veth peer name two netns router
		ip link add eth0 netns three type veth peer name three netns router
		ip addr add 10.0.1.2/24 dev eth0; ip -6 addr add fd00:1::2/64 dev eth0 nodad; ip link set eth0 up
		i=1; for n in one two three; do
			ip -n router addr add 10.0.$i.1/24 dev $n; ip -n router -6 addr add fd00:$i::1/64 dev $n nodad; ip -n router link set $n up; i=$((i+1))
		done
		i=2; for n in two three; do
			ip -n $n addr add 10.0.$i.2/24 dev eth0; ip -n $n -6 addr add fd00:$i::2/64 dev eth0 nodad; ip -n $n link set eth0 up
			ip -n $n route add default via 10.0.$i.1; ip -n $n -6 route add default via fd00:$i::1; i=$((i+1))
		done
		ip route add default via 10.0.1.1; ip -6 route add default via fd00:1::1
		ip netns exec router sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		for n in 2 3; do ping -qc1 -i0.2 -w60 10.0.$n.2; ping -qc1 -i0.2 -w60 fd00:$n::2; done # until links work and neighbours are known`)
	// The kernel takes what is in a namespace away some time after the namespace, so the link that ends here goes first.
	t.Cleanup(func() { sh(t, "ip link del eth0; for n in router two three; do ip netns del $n; done; umount -l /run") })
}

func path(node, local, remote string, size int) render.Path {
	return render.Path{Node: node, Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(remote), Size: size, By: view.TunnelVXLAN}
}

func run(t *testing.T, c check.Checks, nodes ...string) ([]server.PathCheck, time.Duration) {
	t.Helper()
	var out []server.PathCheck
	begin := time.Now()
	require.NoError(t, c.Paths(t.Context(), nodes, func(p server.PathCheck) error {
		out = append(out, p)
		return nil
	}))
	took := time.Since(begin)
	slices.SortFunc(out, func(a, b server.PathCheck) int {
		return strings.Compare(a.Node+a.Address.String(), b.Node+b.Address.String())
	})
	return out, took
}

func TestPathsAreMeasured(t *testing.T) {
	world(t)
	all := check.Checks{Agent: known{paths: []render.Path{
		path("two", "10.0.1.2", "10.0.2.2", 1500), path("three", "10.0.1.2", "10.0.3.2", 1500),
		path("two", "fd00:1::2", "fd00:2::2", 1500), path("three", "fd00:1::2", "fd00:3::2", 1500),
		path("gone", "10.0.1.2", "10.0.2.99", 1500),
	}}}
	fits := func(list []server.PathCheck) map[string]int {
		out := map[string]int{}
		for _, p := range list {
			out[p.Node+" "+p.Address.String()] = p.Fits
		}
		return out
	}
	whole := map[string]int{"two 10.0.2.2": 1500, "three 10.0.3.2": 1500, "two fd00:2::2": 1500, "three fd00:3::2": 1500, "gone 10.0.2.99": 0}
	got, _ := run(t, all)
	require.Equal(t, whole, fits(got), "%+v", got)
	for _, p := range got {
		require.Equal(t, "vxlan", p.By)
		require.Equal(t, 1500, p.Wanted)
		if p.Node == "gone" {
			require.Contains(t, p.Error, "no answer to echo requests")
			continue
		}
		require.Empty(t, p.Error)
		require.Positive(t, p.RoundTrip)
	}

	// A link on the way takes less, and nobody says so.
	sh(t, `ip -n router link set three mtu 1412; ip -n three link set eth0 mtu 1412
		ip netns exec router iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP 2>/dev/null ||
			ip netns exec router nft -f - <<-E
				table ip quiet { chain out { type filter hook output priority 0; icmp type destination-unreachable drop; }; }
			E
		ip netns exec router nft -f - <<-E
			table ip6 quiet { chain out { type filter hook output priority 0; icmpv6 type packet-too-big drop; }; }
		E`)
	got, took := run(t, all)
	whole["three 10.0.3.2"], whole["three fd00:3::2"] = 1412, 1412
	require.Equal(t, whole, fits(got))
	t.Logf("took %s", took.Round(time.Millisecond))

	// The same with a router that says so, an own device that is too small, and jumbo frames.
	sh(t, `ip netns exec router nft flush ruleset; ip link set eth0 mtu 1300`)
	got, _ = run(t, all, "two")
	require.Equal(t, map[string]int{"two 10.0.2.2": 1300, "two fd00:2::2": 1300}, fits(got))
	sh(t, `ip link set eth0 mtu 9000; ip -n router link set one mtu 9000; ip -n router link set two mtu 8999; ip -n two link set eth0 mtu 9000`)
	jumbo := check.Checks{Agent: known{paths: []render.Path{path("two", "10.0.1.2", "10.0.2.2", 9000)}}}
	got, _ = run(t, jumbo)
	require.Equal(t, 8999, got[0].Fits)
}

func TestAQuestionAboutNobodyIsRefused(t *testing.T) {
	err := check.Checks{Agent: known{}}.Paths(t.Context(), []string{"nobody"}, nil)
	require.ErrorContains(t, err, "there is no way to node nobody")
}

func TestAnAskerThatGoesEndsTheCheck(t *testing.T) {
	world(t)
	c := check.Checks{Agent: known{paths: []render.Path{path("two", "10.0.1.2", "10.0.2.2", 1500), path("gone", "10.0.1.2", "10.0.2.99", 1500)}}}
	gone := errors.New("gone")
	require.ErrorIs(t, c.Paths(t.Context(), nil, func(server.PathCheck) error { return gone }), gone)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.Paths(ctx, nil, func(server.PathCheck) error { return nil }), context.Canceled)
}

func TestTheSystemIsToldAsItIs(t *testing.T) {
	c := check.Checks{
		Agent: known{
			pools:        map[view.Tunnel]string{view.TunnelVXLAN: "vx", view.TunnelIPIP: "old"},
			capabilities: state.Capabilities{Has: map[string]string{api.FeatureIPIP: "tc BPF"}},
		},
		Checksums: tunnel.ProbeChecksums,
	}
	find := func(name string) server.Feature {
		t.Helper()
		list, kernel, err := c.System(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, kernel)
		i := slices.IndexFunc(list, func(f server.Feature) bool { return f.Name == name })
		require.GreaterOrEqual(t, i, 0, name)
		return list[i]
	}
	require.Equal(t, server.Feature{Name: "nftables", Present: true, NeededBy: "pods' routes and policy", Detail: "rules, sets and connection tracking"}, find("nftables"))
	require.Equal(t, server.Feature{Name: "vxlan", Present: true, NeededBy: "pool vx"}, find("vxlan"))
	require.Equal(t, server.Feature{Name: "ipip", Present: true, NeededBy: "pool old", Detail: "tc BPF"}, find("ipip"))
	require.True(t, find("checksum-offload").Present)
	sh(t, "! ip link show probe.calico; ! nft list table ip probe.calico")

	sh(t, "sysctl -qw net.ipv4.ip_forward=0")
	require.False(t, find("forwarding").Present)
	require.Contains(t, find("forwarding").Detail, "net.ipv4.ip_forward is 0")
	c.Checksums = func() error { return &tunnel.ChecksumError{What: "outer UDP"} }
	require.Contains(t, find("checksum-offload").Detail, "ChecksumOffloadBroken=false")
	c.Agent = known{capabilities: state.Capabilities{Lacks: map[string]string{api.FeatureVXLAN: "load it"}}}
	require.Equal(t, server.Feature{Name: "vxlan", Detail: "load it"}, find("vxlan"))
}
