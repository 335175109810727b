// Package cni asks felix to carry out the verbs of the CNI specification. It is what the CNI plugins are made of: a plugin is
// started for each pod, so that it makes its one call without the gRPC and protobuf libraries (see internal/unary), which
// would cost more to start than all that it does. A test keeps what is written here equal to felix.v1.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/internal/unary"
)

// DefaultSocket is where felix listens for plugins unless told otherwise.
const DefaultSocket = "/var/run/calico/cni.sock"

// ErrTryAgain means that felix cannot do it now but may soon: felix is down, starting, or cut off from typha.
var ErrTryAgain = errors.New("try again later")

// ErrInvalid means that what was asked for can never be done as it stands.
var ErrInvalid = errors.New("not valid")

// ErrNoNetns means that the network namespace of the pod is not there.
var ErrNoNetns = errors.New("the runtime named a network namespace that is not there")

// ErrMismatch means that what was checked is not as it should be.
var ErrMismatch = errors.New("not as it was set up")

// Felix is a felix by its socket. Its calls that change something can be repeated, and are: while felix is away or not ready,
// as it is for a few seconds when it is restarted, for as long as Patience. Those that only ask tell at once how it is.
type Felix struct {
	Socket   string
	Patience time.Duration
}

// A felix that is away is asked again this far apart.
const (
	glance     = 50 * time.Millisecond
	longGlance = 500 * time.Millisecond
)

// Attachment names one interface of one sandbox.
type Attachment struct {
	Network, ContainerID, Interface string
}

// Config is what a call asks for; see NetworkConfig in felix.v1 for each field.
type Config struct {
	MTU                  int
	IPv4, IPv6           bool // families that felix assigns
	IPv4Pools, IPv6Pools []string
	Fixed                []netip.Addr // that felix is to assign
	Addresses            []netip.Addr // given by another IPAM plugin, or by nobody
	KubernetesPolicy     bool
	AllowForwarding      bool
	IPAddrsNoIPAM        bool // the network allows pods addresses of their choice, past IPAM
	FloatingIPs          bool // and floating ones
	Queues               int
	Labels               map[string]string
	PolicyWait           time.Duration // 0 leaves it to felix
	RequirePolicy        bool
	Routes               []netip.Prefix // instead of the default route of their family
	MAC                  string
	Floating             []netip.Addr // lead to the pod
	AllowedSources       []netip.Prefix
	Limits               annotation.Limits
}

// Added is the outcome of Add.
type Added struct {
	HostInterface string
	MAC           string
	MTU           int
	Addresses     []netip.Addr
	Closed        bool // the pod's policy was not known in time; it is closed until it is
}

// Add wires a pod: see CniService.Add.
func (f Felix) Add(ctx context.Context, at Attachment, netns string, args map[string]string, cfg Config) (out Added, err error) {
	var m message
	m.message(1, at.encode())
	m.text(2, netns)
	m.pairs(3, args)
	m.message(4, cfg.encode())
	answer, err := f.insist(ctx, "CniService/Add", m)
	if err != nil {
		return Added{}, err
	}
	err = unary.Each(answer, func(number int, n uint64, value []byte) error {
		switch number {
		case 1:
			out.HostInterface = string(value)
		case 2:
			out.MAC = string(value)
		case 3:
			out.MTU = int(n)
		case 4:
			return appendAddress(&out.Addresses, value)
		case 5:
			out.Closed = n != 0
		}
		return nil
	})
	return out, err
}

// Delete unwires a pod; what is not there is no error.
func (f Felix) Delete(ctx context.Context, at Attachment, netns string, args map[string]string) error {
	var m message
	m.message(1, at.encode())
	m.text(2, netns)
	m.pairs(3, args)
	_, err := f.insist(ctx, "CniService/Delete", m)
	return err
}

// Check compares a wired pod with the result of its Add; ErrMismatch names the first difference.
func (f Felix) Check(ctx context.Context, at Attachment, netns, mac string, addrs []netip.Addr) error {
	var m message
	m.message(1, at.encode())
	m.text(2, netns)
	m.addresses(3, addrs)
	m.text(4, mac)
	_, err := f.call(ctx, "CniService/Check", m)
	return err
}

// Status returns nil if pods can be wired now.
func (f Felix) Status(ctx context.Context) error {
	answer, err := f.call(ctx, "CniService/Status", nil)
	if err != nil {
		return err
	}
	ready := false
	var reasons []string
	if err := unary.Each(answer, func(number int, n uint64, value []byte) error {
		switch number {
		case 1:
			ready = n != 0
		case 2:
			reasons = append(reasons, string(value))
		}
		return nil
	}); err != nil {
		return err
	}
	if !ready {
		return fmt.Errorf("%w: felix is not ready: %s", ErrTryAgain, strings.Join(reasons, "; "))
	}
	return nil
}

// GC removes every attachment of the network that is not listed.
func (f Felix) GC(ctx context.Context, network string, valid []Attachment) error {
	var m message
	m.text(1, network)
	for _, at := range valid {
		m.message(2, at.encode())
	}
	_, err := f.insist(ctx, "CniService/Gc", m)
	return err
}

// PodCIDRs are the ranges that Kubernetes gave to the node.
func (f Felix) PodCIDRs(ctx context.Context) (out []netip.Prefix, err error) {
	answer, err := f.insist(ctx, "CniService/Node", nil)
	if err != nil {
		return nil, err
	}
	err = unary.Each(answer, func(number int, _ uint64, value []byte) error {
		if number != 1 {
			return nil
		}
		p, err := netip.ParsePrefix(string(value))
		out = append(out, p)
		return err
	})
	return out, err
}

// Assign gives an attachment its addresses without wiring it.
func (f Felix) Assign(ctx context.Context, at Attachment, args map[string]string, cfg Config) (out []netip.Addr, err error) {
	var m message
	m.message(1, at.encode())
	m.pairs(2, args)
	m.message(3, cfg.encode())
	answer, err := f.insist(ctx, "IpamService/Assign", m)
	if err != nil {
		return nil, err
	}
	err = unary.Each(answer, func(number int, _ uint64, value []byte) error {
		if number != 1 {
			return nil
		}
		return appendAddress(&out, value)
	})
	return out, err
}

// Unassign frees the addresses of an attachment.
func (f Felix) Unassign(ctx context.Context, at Attachment) error {
	var m message
	m.message(1, at.encode())
	_, err := f.insist(ctx, "IpamService/Unassign", m)
	return err
}

// call makes one call.
func (f Felix) call(ctx context.Context, method string, request message) (message, error) {
	return f.try(ctx, method, request, 0)
}

// insist makes a call again and again while felix is away or not ready, until its patience ends. A call that a felix which was
// killed may have carried out is made again too.
func (f Felix) insist(ctx context.Context, method string, request message) (message, error) {
	return f.try(ctx, method, request, f.Patience)
}

func (f Felix) try(ctx context.Context, method string, request message, patience time.Duration) (message, error) {
	pause := backoff.Backoff{Min: glance, Max: longGlance}
	var away time.Time // since when felix is; zero: it is not
	for {
		answer, err := unary.Call(ctx, f.Socket, "/muslin.felix.v1."+method, request)
		var failed *unary.Error
		if !errors.As(err, &failed) {
			return answer, err
		}
		if away.IsZero() {
			away = time.Now()
		}
		waited := time.Since(away)
		if failed.Code != unary.Unavailable || waited >= patience || pause.Wait(ctx) != nil {
			return nil, f.explain(failed, waited)
		}
	}
}

// explain turns a status into an error that says what to do.
func (f Felix) explain(failed *unary.Error, waited time.Duration) error {
	since := ""
	if waited >= time.Second {
		since = fmt.Sprintf(" for %.0f s", waited.Seconds())
	}
	switch failed.Code {
	case unary.Unavailable:
		if failed.Unanswered {
			return fmt.Errorf("%w: felix has not answered on %s%s: %s; is felix running on this node?", ErrTryAgain, f.Socket, since, failed.Message)
		}
		return fmt.Errorf("%w: felix on %s has not been ready%s: %s", ErrTryAgain, f.Socket, since, failed.Message)
	case unary.DeadlineExceeded:
		return fmt.Errorf("%w: felix at %s did not answer in time", ErrTryAgain, f.Socket)
	case unary.Aborted:
		return fmt.Errorf("%w: %s", ErrTryAgain, failed.Message)
	case unary.InvalidArgument:
		return fmt.Errorf("%w: %s", ErrInvalid, failed.Message)
	case unary.NotFound:
		return fmt.Errorf("%w: %s", ErrNoNetns, failed.Message)
	case unary.FailedPrecondition:
		return fmt.Errorf("%w: %s", ErrMismatch, failed.Message)
	}
	return errors.New(failed.Message)
}

func (a Attachment) encode() (m message) {
	m.text(1, a.Network)
	m.text(2, a.ContainerID)
	m.text(3, a.Interface)
	return m
}

func (c Config) encode() (m message) {
	m.number(1, uint64(c.MTU))
	m.truth(2, c.IPv4)
	m.truth(3, c.IPv6)
	m.texts(4, c.IPv4Pools)
	m.texts(5, c.IPv6Pools)
	m.addresses(6, c.Addresses)
	m.truth(7, c.KubernetesPolicy)
	m.truth(8, c.AllowForwarding)
	m.truth(9, c.IPAddrsNoIPAM)
	m.truth(10, c.FloatingIPs)
	m.number(11, uint64(c.Queues))
	m.pairs(12, c.Labels)
	if c.PolicyWait > 0 {
		var d message // google.protobuf.Duration
		d.number(1, uint64(c.PolicyWait/time.Second))
		d.number(2, uint64(c.PolicyWait%time.Second))
		m.message(13, d)
	}
	m.truth(14, c.RequirePolicy)
	m.prefixes(15, c.Routes)
	m.addresses(16, c.Fixed)
	m.text(17, c.MAC)
	m.prefixes(18, c.AllowedSources)
	m.limit(19, c.Limits.Ingress)
	m.limit(20, c.Limits.Egress)
	m.addresses(21, c.Floating)
	return m
}

func (m *message) limit(number int, l annotation.Limit) {
	if l == (annotation.Limit{}) {
		return
	}
	var part message
	for i, n := range []uint64{l.Bandwidth, l.Burst, l.Peakrate, l.Minburst, l.PacketRate, l.PacketBurst, l.MaxConnections} {
		part.number(i+1, n)
	}
	m.message(number, part)
}

func appendAddress(out *[]netip.Addr, value []byte) error {
	a, ok := netip.AddrFromSlice(value)
	if !ok {
		return fmt.Errorf("felix sent an address of %d bytes", len(value))
	}
	*out = append(*out, a)
	return nil
}
