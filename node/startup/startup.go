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
	// Enrol, if not nil, has typha know this node. It is called when all that can be judged without typha has been judged.
	Enrol func(ctx context.Context) error
	// Interfaces lists those of the host; nil asks the kernel.
	Interfaces func() ([]detect.Interface, error)
}

func (c Config) interfaces() ([]detect.Interface, error) {
	if c.Interfaces != nil {
		return c.Interfaces()
	}
	return hostInterfaces()
}

// Backend is what CALICO_NETWORKING_BACKEND says.
func Backend(env func(name string) string) (api.Backend, error) {
	b, err := api.ParseBackend(env("CALICO_NETWORKING_BACKEND"))
	if err != nil {
		return "", fmt.Errorf("environment variable CALICO_NETWORKING_BACKEND: %w", err)
	}
	return b, nil
}

// Run registers the node. While typha cannot be reached it tries again; what can never work is an error at once.
func Run(ctx context.Context, cfg Config, typha Typha) error {
	p, err := planOf(cfg)
	if err == nil {
		err = p.lacking6
	}
	if err == nil && cfg.Enrol != nil {
		err = cfg.Enrol(ctx)
	}
	if err != nil {
		return err
	}
	for {
		done, err := p.register(ctx, typha)
		switch {
		case err == nil:
			p.tell(cfg, done)
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

// register carries a plan out. What depends on what is stored is asked first.
func (p plan) register(ctx context.Context, typha Typha) (client.Registered, error) {
	if p.keepIPv4 || p.lacking != nil {
		stored, err := typha.Register(ctx, client.Registration{ReadOnly: true})
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			return client.Registered{}, err
		}
		switch {
		case stored.Node != nil && stored.Node.Spec.BGP != nil && stored.Node.Spec.BGP.IPv4Address != "":
			p.IPv4 = netip.Prefix{} // what is stored stays
		case p.lacking != nil && (p.wantsIPv4 || stored.Node == nil || stored.Node.Spec.BGP == nil || stored.Node.Spec.BGP.IPv6Address == ""):
			return client.Registered{}, p.lacking
		}
	}
	return typha.Register(ctx, p.Registration)
}

// tell says what is stored now, and what of it differs from what the host has.
func (p plan) tell(cfg Config, done client.Registered) {
	stored := factsOf(done.Node)
	cfg.Log.Info("node registered", "node", done.Node.Name, "ipv4", stored.ipv4, "ipv6", stored.ipv6, "pools_created", done.PoolsCreated)
	if p.keepIPv4 && p.IPv4.IsValid() && stored.ipv4.Addr() != p.IPv4.Addr() {
		cfg.Log.Warn("the node keeps the address that is stored, which is not the host's; set IP=autodetect to have it follow, or IP to the "+
			"address to use", "stored", stored.ipv4, "found", p.IPv4)
	}
}

// Before tells whether this node has been part of the cluster before, so that its daemons can start without typha.
func Before(cfg Config) bool {
	name, err := os.ReadFile(filepath.Join(cfg.LibDir, "nodename"))
	if err != nil || strings.TrimSpace(string(name)) != cfg.Node {
		return false
	}
	_, err = os.Stat(filepath.Join(cfg.LibDir, "felix", "view"))
	return err == nil
}

// writeName leaves the name for the CNI plugin and others; its time also tells how young the node is.
func writeName(cfg Config) error {
	if err := os.MkdirAll(cfg.LibDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.LibDir, "nodename"), []byte(cfg.Node), 0o644) //nolint:gosec // everybody may know the name
}

// plan is what the node says of itself, as far as that does not depend on what is stored of it.
type plan struct {
	client.Registration
	keepIPv4  bool  // an IPv4 address that is stored stays
	wantsIPv4 bool  // without an IPv4 address the node cannot start
	lacking   error // why the node has no address, unless one is stored
	lacking6  error // why it has no IPv6 address, though one is asked for
}

// planOf works out what the node says of itself. Its errors name the variable that is wrong.
func planOf(cfg Config) (p plan, err error) {
	interfaces, err := cfg.interfaces()
	if err != nil {
		return p, err
	}
	if p.SkipAddressCheck, err = truth(cfg, "DISABLE_NODE_IP_CHECK"); err != nil {
		return p, err
	}
	if ref := cfg.Env("CALICO_K8S_NODE_REF"); ref != "" {
		p.OrchRefs = []api.OrchRef{{NodeName: ref, Orchestrator: "k8s"}}
	}
	backend, err := Backend(cfg.Env)
	if err != nil || backend == api.BackendNone {
		return p, err
	}
	if err := p.addresses(cfg, interfaces); err != nil {
		return p, err
	}
	if text := cfg.Env("AS"); text != "" {
		if p.ASNumber, err = api.ParseASNumber(text); err != nil {
			return p, fmt.Errorf("environment variable AS: %w", err)
		}
	}
	facts := pools.Facts{Env: cfg.Env, Backend: backend, IPv4: cfg.Env("IP") != none, IPv6: wanted(cfg, "IP6")}
	for _, i := range interfaces {
		facts.Addresses = append(facts.Addresses, i.Addresses...)
	}
	if _, err := rand.Read(facts.Random[:]); err != nil {
		return p, err
	}
	p.Pools, err = pools.Propose(facts)
	return p, err
}

// addresses are those that the variables ask for. Without a word IPv4 is detected where none is stored, and IPv6 is left as
// it is stored (spec: node facts).
func (p *plan) addresses(cfg Config, interfaces []detect.Interface) (err error) {
	p.keepIPv4, p.wantsIPv4 = cfg.Env("IP") == "", cfg.Env("IP") != none
	if p.IPv4, err = address("IP", cmp.Or(cfg.Env("IP"), auto), cfg, false, interfaces); errors.Is(err, errNotFound) {
		p.lacking = err
	} else if err != nil {
		return err
	}
	if p.IPv6, err = address("IP6", cmp.Or(cfg.Env("IP6"), none), cfg, true, interfaces); errors.Is(err, errNotFound) {
		p.lacking6 = err
	} else if err != nil {
		return err
	}
	if !p.IPv4.IsValid() && !p.IPv6.IsValid() && p.lacking == nil {
		p.lacking = errors.New("environment variables IP and IP6: the node has neither an IPv4 nor an IPv6 address; give it one, or autodetect")
	}
	for _, i := range detect.Reported(interfaces, wanted(cfg, "IP"), wanted(cfg, "IP6")) {
		out := client.Interface{Name: i.Name}
		for _, a := range i.Addresses {
			out.Addresses = append(out.Addresses, a.Addr())
		}
		p.Interfaces = append(p.Interfaces, out)
	}
	return nil
}

// Values of IP and IP6 besides addresses.
const (
	none = "none"
	auto = "autodetect"
)

// errNotFound marks that no address could be detected.
var errNotFound = errors.New("no address was found")

// wanted tells whether a variable asks for addresses of its family in so many words.
func wanted(cfg Config, variable string) bool {
	value := cfg.Env(variable)
	return value != "" && value != none
}

// truth reads a variable that is true, false or not set.
func truth(cfg Config, variable string) (bool, error) {
	switch value := strings.ToLower(cfg.Env(variable)); value {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, fmt.Errorf("environment variable %s: %q is not a truth value; use true or false", variable, value)
	}
}

// address is what a variable says: "none", "autodetect", an address, or an address with prefix length.
func address(variable, value string, cfg Config, v6 bool, interfaces []detect.Interface) (netip.Prefix, error) {
	switch value {
	case none:
		return netip.Prefix{}, nil
	case auto:
		return autodetect(variable, cfg, v6, interfaces)
	}
	if p, err := netip.ParsePrefix(value); err == nil && p.Addr().Is6() == v6 {
		return p, nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil || a.Is6() != v6 {
		return netip.Prefix{}, fmt.Errorf("environment variable %s: %q is not an address of this family; use ADDRESS, ADDRESS/LENGTH, autodetect or none", variable, value)
	}
	if v6 {
		return netip.PrefixFrom(a, a.BitLen()), nil // stays a host mask (spec: node facts)
	}
	return complete(variable, a, cfg, interfaces), nil
}

func complete(variable string, a netip.Addr, cfg Config, interfaces []detect.Interface) netip.Prefix {
	p, ok := detect.Complete(a, interfaces)
	if !ok {
		cfg.Log.Warn("no interface has the node's address, so its subnet is unknown and CrossSubnet tunnels everything", "variable", variable, "address", a)
	}
	return p
}

// hostIPs are the addresses that Kubernetes has for the node: the pod's status.hostIPs, which kubelet knows without being told
// by anybody.
const hostIPs = "NODE_IPS"

// internal is the node's address of a family by the method kubernetes-internal-ip.
func internal(cfg Config, method string, v6 bool, interfaces []detect.Interface) (netip.Prefix, error) {
	for text := range strings.FieldsFuncSeq(cfg.Env(hostIPs), func(r rune) bool { return r == ',' || r == ' ' }) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("environment variable %s: %q is not an address; have the downward API set it to status.hostIPs", hostIPs, text)
		}
		if a.Is6() == v6 {
			return complete(method, a, cfg, interfaces), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("environment variable %s: %w: kubernetes-internal-ip takes it from %s, which is %q; have the downward API set that to status.hostIPs",
		method, errNotFound, hostIPs, cfg.Env(hostIPs))
}

func autodetect(variable string, cfg Config, v6 bool, interfaces []detect.Interface) (netip.Prefix, error) {
	name := variable + "_AUTODETECTION_METHOD"
	method, err := detect.ParseMethod(cfg.Env(name))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("environment variable %s: %w", name, err)
	}
	if method.Kubernetes {
		return internal(cfg, name, v6, interfaces)
	}
	var source netip.Addr
	if method.Reach != "" {
		if source, err = sourceTo(method.Reach, v6); err != nil {
			return netip.Prefix{}, fmt.Errorf("environment variable %s: %w: %w", name, errNotFound, err)
		}
	}
	found, err := method.Choose(interfaces, v6, source)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("environment variable %s: %w: %w", variable, errNotFound, err)
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
