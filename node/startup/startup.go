// Package startup is what runs on a node before the daemons do: it finds the node's addresses, registers the node with
// typha, proposes default pools, and leaves the node's name for the others.
package startup

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/node/detect"
	"github.com/muslin-net/muslin/node/pools"
	"github.com/muslin-net/muslin/typha/client"
)

// How often registration is tried again while typha cannot be reached.
const retry = time.Second

// Typha is what startup asks of typha.
type Typha interface {
	Register(ctx context.Context, r client.Registration) (client.Registered, error)
}

// Config is where startup reads from and writes to.
type Config struct {
	Node   string
	LibDir string                   // gets the file nodename
	Env    func(name string) string // settings, by the names that users of Calico know
	Log    *slog.Logger
}

// Run registers the node. While typha cannot be reached it tries again; what can never work is an error at once.
func Run(ctx context.Context, cfg Config, typha Typha) error {
	r, err := registration(cfg)
	if err != nil {
		return err
	}
	for {
		done, err := typha.Register(ctx, r)
		switch {
		case err == nil:
			cfg.Log.Info("node registered", "node", done.Node.Name, "ipv4", r.IPv4, "ipv6", r.IPv6, "pools_created", done.PoolsCreated)
			return writeName(cfg)
		case !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, client.ErrTimeout):
			return fmt.Errorf("register node %s: %w", cfg.Node, err)
		}
		cfg.Log.Warn("typha cannot be reached, trying again", "within", retry, "error", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("register node %s: %w", cfg.Node, err)
		case <-time.After(retry):
		}
	}
}

// writeName leaves the name for the CNI plugin and others; its time also tells how young the node is.
func writeName(cfg Config) error {
	if err := os.MkdirAll(cfg.LibDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.LibDir, "nodename"), []byte(cfg.Node), 0o644) //nolint:gosec // everybody may know the name
}

// registration works out what the node says of itself.
func registration(cfg Config) (client.Registration, error) {
	interfaces, err := hostInterfaces()
	if err != nil {
		return client.Registration{}, err
	}
	r := client.Registration{SkipAddressCheck: cfg.Env("DISABLE_NODE_IP_CHECK") == "true"}
	backend := cmp.Or(cfg.Env("CALICO_NETWORKING_BACKEND"), "bird")
	switch backend {
	case "none":
		return r, nil
	case "bird", "vxlan":
	default:
		return r, fmt.Errorf("environment variable CALICO_NETWORKING_BACKEND: %q is no backend; use bird, vxlan or none", backend)
	}
	// Without a word IPv4 is detected and IPv6 is off (spec: node facts).
	ip4, ip6 := cmp.Or(cfg.Env("IP"), "autodetect"), cmp.Or(cfg.Env("IP6"), "none")
	if r.IPv4, err = address("IP", ip4, cfg, false, interfaces); err != nil {
		return r, err
	}
	if r.IPv6, err = address("IP6", ip6, cfg, true, interfaces); err != nil {
		return r, err
	}
	if text := cfg.Env("AS"); text != "" {
		if r.ASNumber, err = api.ParseASNumber(text); err != nil {
			return r, fmt.Errorf("environment variable AS: %w", err)
		}
	}
	for _, i := range detect.Reported(interfaces, ip4 != "none", ip6 != "none") {
		out := client.Interface{Name: i.Name}
		for _, a := range i.Addresses {
			out.Addresses = append(out.Addresses, a.Addr())
		}
		r.Interfaces = append(r.Interfaces, out)
	}
	if ref := cfg.Env("CALICO_K8S_NODE_REF"); ref != "" {
		r.OrchRefs = []api.OrchRef{{NodeName: ref, Orchestrator: "k8s"}}
	}
	facts := pools.Facts{Env: cfg.Env, IPv4: ip4 != "none", IPv6: ip6 != "none"}
	for _, i := range interfaces {
		facts.Addresses = append(facts.Addresses, i.Addresses...)
	}
	if _, err := rand.Read(facts.Random[:]); err != nil {
		return r, err
	}
	r.Pools, err = pools.Propose(facts)
	return r, err
}

// address is what a variable says: "none", "autodetect", an address, or an address with prefix length.
func address(variable, value string, cfg Config, v6 bool, interfaces []detect.Interface) (netip.Prefix, error) {
	switch value {
	case "none":
		return netip.Prefix{}, nil
	case "autodetect":
		return autodetect(variable, cfg, v6, interfaces)
	}
	if p, err := netip.ParsePrefix(value); err == nil && p.Addr().Is6() == v6 {
		return p, nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil || a.Is6() != v6 {
		return netip.Prefix{}, fmt.Errorf("environment variable %s: %q is not an address of this family; use ADDRESS, ADDRESS/LENGTH, autodetect or none", variable, value)
	}
	p, ok := detect.Complete(a, interfaces)
	if !ok {
		cfg.Log.Warn("no interface has the node's address, so its subnet is unknown and CrossSubnet tunnels everything", "variable", variable, "address", a)
	}
	return p, nil
}

func autodetect(variable string, cfg Config, v6 bool, interfaces []detect.Interface) (netip.Prefix, error) {
	name := variable + "_AUTODETECTION_METHOD"
	method, err := detect.ParseMethod(cfg.Env(name))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("environment variable %s: %w", name, err)
	}
	var source netip.Addr
	if method.Reach != "" {
		if source, err = sourceTo(method.Reach, v6); err != nil {
			return netip.Prefix{}, fmt.Errorf("environment variable %s: %w", name, err)
		}
	}
	found, err := method.Choose(interfaces, v6, source)
	if err != nil {
		return netip.Prefix{}, err
	}
	cfg.Log.Info("address found", "method", method, "interface", found.Interface, "address", found.Address)
	return found.Address, nil
}

// sourceTo is the address from which the kernel would send to a host. No packet is sent.
func sourceTo(host string, v6 bool) (netip.Addr, error) {
	network := "udp4"
	if v6 {
		network = "udp6"
	}
	c, err := net.Dial(network, net.JoinHostPort(host, strconv.Itoa(80)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("there is no way to %s: %w", host, err)
	}
	defer c.Close()
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	return local.Addr().Unmap(), err
}

func hostInterfaces() ([]detect.Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := make([]detect.Interface, 0, len(list))
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		found := detect.Interface{Name: i.Name, Index: i.Index}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				found.Addresses = append(found.Addresses, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()))
			}
		}
		out = append(out, found)
	}
	return out, nil
}

// NodeName is the node's name: as given, as stored by an earlier start, or the host's (spec: node facts).
func NodeName(given, libDir string, env func(string) string, log *slog.Logger) (string, error) {
	if name := cmp.Or(given, env("NODENAME")); name != "" {
		return name, nil
	}
	if stored, err := os.ReadFile(filepath.Join(libDir, "nodename")); err == nil && len(strings.TrimSpace(string(stored))) > 0 {
		return strings.TrimSpace(string(stored)), nil
	}
	if name := env("HOSTNAME"); name != "" {
		return strings.ToLower(name), nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("the node has no name: %w; set NODENAME", err)
	}
	log.Warn("taking the host's name as the node's; set NODENAME if that may change", "name", name)
	return strings.ToLower(name), nil
}
