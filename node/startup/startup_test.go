package startup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/node/detect"
	"github.com/muslin-net/muslin/node/startup"
	"github.com/muslin-net/muslin/typha/client"
)

// typha keeps one node as typha does.
type typha struct {
	mu     sync.Mutex // for tests that call from another goroutine
	down   []error    // what the next calls fail with
	stored *api.Node
	asked  []client.Registration
}

func (y *typha) Register(_ context.Context, r client.Registration) (client.Registered, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.down) > 0 {
		err := y.down[0]
		y.down = y.down[1:]
		return client.Registered{}, err
	}
	if r.ReadOnly {
		if y.stored == nil {
			return client.Registered{}, fmt.Errorf("Node(worker-1): %w", client.ErrNotFound)
		}
		return client.Registered{Node: y.stored}, nil
	}
	y.asked = append(y.asked, r)
	if y.stored == nil {
		y.stored = &api.Node{}
	}
	return client.Registered{Node: y.stored}, nil
}

// start runs the start-up with an environment, written as "NAME=value NAME=value".
func start(t *testing.T, y *typha, environment string) (client.Registration, error) {
	t.Helper()
	env := map[string]string{}
	for pair := range strings.FieldsSeq(environment) {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	err := startup.Run(t.Context(), startup.Config{
		Node: "worker-1", LibDir: filepath.Join(t.TempDir(), "lib"), Log: slog.New(slog.DiscardHandler),
		Env: func(name string) string { return env[name] },
	}, y)
	if err != nil {
		require.Empty(t, y.asked, "nothing is half done")
		return client.Registration{}, err
	}
	require.Len(t, y.asked, 1)
	return y.asked[0], nil
}

func with(ipv4, ipv6 string) *typha {
	n := &api.Node{}
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: ipv4, IPv6Address: ipv6}
	return &typha{stored: n}
}

const lost = "IP_AUTODETECTION_METHOD=interface=no-such-interface" // finds nothing

// Which address a node gets: what the variable says, what is stored, or what is detected (spec: node facts).
func TestAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		env        string
		stored     *typha
		ipv4, ipv6 string // registered; "" leaves what is stored
		err        string
	}{
		"given":                           {env: "IP=10.30.0.206/24", ipv4: "10.30.0.206/24"},
		"given beats stored":              {env: "IP=10.30.0.206/24", stored: with("10.0.0.1/24", ""), ipv4: "10.30.0.206/24"},
		"without mask, on no interface":   {env: "IP=203.0.113.77", ipv4: "203.0.113.77/32"},
		"without mask, on the loopback":   {env: "IP=127.0.0.1", ipv4: "127.0.0.1/8"},
		"IPv6 only":                       {env: "IP=none IP6=fd00::1/64", ipv6: "fd00::1/64"},
		"IPv6 without mask":               {env: "IP=none IP6=::1", ipv6: "::1/128"},
		"both":                            {env: "IP=10.0.0.1/24 IP6=fd00::1/64", ipv4: "10.0.0.1/24", ipv6: "fd00::1/64"},
		"unset keeps what is stored":      {env: lost, stored: with("10.0.0.1/24", "")},
		"detection fails, stored":         {env: "IP=autodetect " + lost, stored: with("10.0.0.1/24", "")},
		"detection fails, none stored":    {env: lost, stored: with("", ""), err: "environment variable IP: no address was found: autodetection method interface=no-such-interface"},
		"detection fails, only IPv6":      {env: "IP6=fd00::1/64 " + lost, stored: with("", "fd00::1/64"), err: "environment variable IP: no address was found"},
		"detection fails, explicitly":     {env: "IP=autodetect " + lost, err: "environment variable IP: no address was found"},
		"no way to host":                  {env: "IP=autodetect IP_AUTODETECTION_METHOD=can-reach=fd00::1", err: "environment variable IP_AUTODETECTION_METHOD: no address was found: there is no way to fd00::1"},
		"neither":                         {env: "IP=none", err: "neither an IPv4 nor an IPv6 address"},
		"neither, one stored":             {env: "IP=none", stored: with("", "fd00::1/64")},
		"policy only":                     {env: "CALICO_NETWORKING_BACKEND=none"},
		"VXLAN only":                      {env: "CALICO_NETWORKING_BACKEND=vxlan IP=10.0.0.1/24", ipv4: "10.0.0.1/24"},
		"IPv6 is detected when asked for": {env: "IP=10.0.0.1/24 IP6=autodetect IP6_AUTODETECTION_METHOD=interface=none", err: "environment variable IP6: no address was found"},
		"of the other family":             {env: "IP=fd00::1/64", err: `environment variable IP: "fd00::1/64" is not an address of this family`},
		"IPv6 of the other family":        {env: "IP=none IP6=10.0.0.1", err: `environment variable IP6: "10.0.0.1" is not an address of this family`},
		"nonsense":                        {env: "IP=here", err: `environment variable IP: "here" is not an address`},
		"of Kubernetes":                   {env: "IP=autodetect IP_AUTODETECTION_METHOD=kubernetes-internal-ip NODE_IPS=fd00::7,127.0.0.1", ipv4: "127.0.0.1/8"},
		"of Kubernetes, both":             {env: "IP=autodetect IP_AUTODETECTION_METHOD=kubernetes-internal-ip NODE_IPS=203.0.113.7,::1 IP6=autodetect IP6_AUTODETECTION_METHOD=kubernetes-internal-ip", ipv4: "203.0.113.7/32", ipv6: "::1/128"},
		"of Kubernetes, not told":         {env: "IP_AUTODETECTION_METHOD=kubernetes-internal-ip", err: "have the downward API set that to status.hostIPs"},
		"of Kubernetes, no address":       {env: "IP_AUTODETECTION_METHOD=kubernetes-internal-ip NODE_IPS=me", err: `environment variable NODE_IPS: "me" is not an address`},
		"method":                          {env: "IP_AUTODETECTION_METHOD=guess", err: `environment variable IP_AUTODETECTION_METHOD: autodetection method "guess": there is no such method`},
		"backend":                         {env: "CALICO_NETWORKING_BACKEND=gobgp", err: `environment variable CALICO_NETWORKING_BACKEND: "gobgp" is no backend`},
		"AS number":                       {env: "IP=10.0.0.1/24 AS=many", err: "environment variable AS: "},
		"conflict check":                  {env: "IP=10.0.0.1/24 DISABLE_NODE_IP_CHECK=perhaps", err: `environment variable DISABLE_NODE_IP_CHECK: "perhaps" is not a truth value`},
		"pools":                           {env: "IP=10.0.0.1/24 CALICO_IPV4POOL_CIDR=big", err: `environment variable CALICO_IPV4POOL_CIDR: "big"`},
		"no pools":                        {env: "IP=10.0.0.1/24 NO_DEFAULT_POOLS=si", err: `environment variable NO_DEFAULT_POOLS: "si"`},
	} {
		t.Run(name, func(t *testing.T) {
			y := c.stored
			if y == nil {
				y = &typha{}
			}
			got, err := start(t, y, c.env)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.ipv4, prefixText(got.IPv4))
			require.Equal(t, c.ipv6, prefixText(got.IPv6))
		})
	}
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func TestWhatElseIsRegistered(t *testing.T) {
	r, err := start(t, &typha{}, "IP=10.0.0.1/24 AS=64512.77 CALICO_K8S_NODE_REF=node-7 DISABLE_NODE_IP_CHECK=True CALICO_IPV4POOL_CIDR=10.5.0.0/16 CALICO_IPV4POOL_VXLAN=CrossSubnet")
	require.NoError(t, err)
	require.Equal(t, api.ASNumber(64512<<16+77), r.ASNumber)
	require.Equal(t, []api.OrchRef{{NodeName: "node-7", Orchestrator: "k8s"}}, r.OrchRefs)
	require.True(t, r.SkipAddressCheck)
	require.Len(t, r.Pools, 1)
	require.Equal(t, "10.5.0.0/16", r.Pools[0].Spec.CIDR)

	r, err = start(t, &typha{}, "IP=none IP6=fd00::1/64")
	require.NoError(t, err)
	require.Len(t, r.Pools, 1, "of the families that the node takes part in")
	require.Contains(t, r.Pools[0].Spec.CIDR, "fd")
	require.Zero(t, r.ASNumber, "keeps what is stored")

	r, err = start(t, &typha{}, "IP=10.0.0.1/24 IP6=fd00::1/64 NO_DEFAULT_POOLS=true")
	require.NoError(t, err)
	require.Empty(t, r.Pools)
}

func TestTyphaIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		away := fmt.Errorf("dial: %w", client.ErrUnavailable)
		y := &typha{down: []error{away, fmt.Errorf("%w", client.ErrTimeout), away}}
		cfg := startup.Config{
			Node: "worker-1", LibDir: filepath.Join(dir, "deep"), Log: slog.New(slog.DiscardHandler),
			Env: func(name string) string { return map[string]string{"IP": "10.0.0.1/24"}[name] },
		}
		begin := time.Now()
		require.NoError(t, startup.Run(t.Context(), cfg, y))
		require.Equal(t, 3*time.Second, time.Since(begin))
		name, err := os.ReadFile(filepath.Join(dir, "deep", "nodename"))
		require.NoError(t, err)
		require.Equal(t, "worker-1", string(name))

		refused := &typha{down: []error{fmt.Errorf("node worker-9 has address 10.0.0.1: %w", client.ErrExists)}}
		begin = time.Now()
		err = startup.Run(t.Context(), cfg, refused)
		require.EqualError(t, err, "register node worker-1: node worker-9 has address 10.0.0.1: already exists")
		require.Zero(t, time.Since(begin), "what can never work is not tried again")

		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		var never []error
		for range 200 {
			never = append(never, away)
		}
		err = startup.Run(ctx, cfg, &typha{down: never})
		require.True(t, errors.Is(err, client.ErrUnavailable), "%v", err)
		require.ErrorContains(t, err, "register node worker-1: dial: typha cannot be reached")
	})
}

// The name: as given, NODENAME, as stored, HOSTNAME in lower case, the host's.
func TestNodeName(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	env := map[string]string{"NODENAME": "Named", "HOSTNAME": "HOST.Example"}
	name := func(given string) string {
		t.Helper()
		got, err := startup.NodeName(given, dir, func(n string) string { return env[n] }, log)
		require.NoError(t, err)
		return got
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nodename"), []byte("stored\n"), 0o600))
	require.Equal(t, "given", name("given"))
	require.Equal(t, "Named", name(""))
	delete(env, "NODENAME")
	require.Equal(t, "stored", name(""))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nodename"), []byte("\n"), 0o600))
	require.Equal(t, "host.example", name(""), "a torn file is none")
	delete(env, "HOSTNAME")
	host, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, strings.ToLower(host), name(""))
}

// What is said in the end is what is stored, and where the host has another address, how to have that one taken.
func TestTheStoredAddressIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		stored string
		warned bool
	}{
		"the host's":           {"10.30.0.77/24", false},
		"one it does not have": {"10.30.0.56/24", true},
	} {
		t.Run(name, func(t *testing.T) {
			var said strings.Builder
			require.NoError(t, startup.Run(t.Context(), startup.Config{
				Node: "worker-1", LibDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&said, nil)), Env: func(string) string { return "" },
				Interfaces: func() ([]detect.Interface, error) {
					return []detect.Interface{{Name: "ens5", Index: 2, Addresses: []netip.Prefix{netip.MustParsePrefix("10.30.0.77/24")}}}, nil
				},
			}, with(c.stored, "")))
			require.Contains(t, said.String(), "ipv4="+c.stored)
			if c.warned {
				require.Contains(t, said.String(), "set IP=autodetect to have it follow")
				require.Contains(t, said.String(), "found=10.30.0.77/24")
			} else {
				require.NotContains(t, said.String(), "level=WARN")
			}
		})
	}
}

// A node enrols when its environment has been judged, and registers when it has enrolled.
func TestEnrolmentComesBetween(t *testing.T) {
	y, dir := &typha{}, t.TempDir()
	env := map[string]string{"IP": "here"}
	enrolled, refused := 0, errors.New("refused")
	cfg := startup.Config{
		Node: "worker-1", LibDir: dir, Log: slog.New(slog.DiscardHandler), Env: func(name string) string { return env[name] },
		Enrol: func(context.Context) error { enrolled++; return refused },
	}
	require.ErrorContains(t, startup.Run(t.Context(), cfg, y), "environment variable IP")
	require.Zero(t, enrolled)
	env["IP"] = "10.0.0.1/24"
	require.ErrorIs(t, startup.Run(t.Context(), cfg, y), refused)
	require.Empty(t, y.asked)
	refused = nil
	require.False(t, startup.Before(cfg))
	require.NoError(t, startup.Run(t.Context(), cfg, y))
	require.Len(t, y.asked, 1)

	require.False(t, startup.Before(cfg), "its daemons have nothing to start from")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "felix"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "felix", "view"), nil, 0o600))
	require.True(t, startup.Before(cfg))
	cfg.Node = "worker-2"
	require.False(t, startup.Before(cfg))
}
