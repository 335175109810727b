// Package client talks to felix over its unix socket. It is what the CNI plugins, the CSI driver, the node's probes and
// calicoctl use; it imports no more than the wire, so that a plugin stays small and starts fast.
package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// DefaultSocket is where felix listens unless told otherwise.
const DefaultSocket = "/var/run/calico/felix.sock"

// ErrTryAgain means that felix cannot do it now but may soon: felix is down, starting, or cut off from typha.
var ErrTryAgain = errors.New("try again later")

// ErrInvalid means that what was asked for can never be done as it stands.
var ErrInvalid = errors.New("not valid")

// ErrMismatch means that what was checked is not as it should be.
var ErrMismatch = errors.New("not as it was set up")

// Client is a connection to one felix.
type Client struct {
	conn *grpc.ClientConn
	cni  felixv1.CniServiceClient
	ipam felixv1.IpamServiceClient
	live felixv1.StateServiceClient
	path string

	checks felixv1.CheckServiceClient
}

// Dial prepares a connection; it is made on first use.
func Dial(socket string) (*Client, error) {
	conn, err := rpc.DialUnix(socket)
	if err != nil {
		return nil, fmt.Errorf("felix socket %s: %w", socket, err)
	}
	return &Client{
		conn: conn, path: socket,
		cni: felixv1.NewCniServiceClient(conn), ipam: felixv1.NewIpamServiceClient(conn), live: felixv1.NewStateServiceClient(conn),
		checks: felixv1.NewCheckServiceClient(conn),
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Attachment names one interface of one sandbox.
type Attachment struct {
	Network, ContainerID, Interface string
}

// Config is what a CNI network configuration asks for; see NetworkConfig in the protocol for each field.
type Config struct {
	MTU                  int
	IPv4, IPv6           bool // families that felix assigns
	IPv4Pools, IPv6Pools []string
	Addresses            []netip.Addr // given by another IPAM plugin
	KubernetesPolicy     bool
	AllowForwarding      bool
	AddrsNoIPAM          bool
	FloatingIPs          bool
	Queues               int
	Labels               map[string]string
	PolicyWait           time.Duration
	RequirePolicy        bool
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
func (c *Client) Add(ctx context.Context, at Attachment, netns string, args map[string]string, cfg Config) (Added, error) {
	resp, err := c.cni.Add(ctx, &felixv1.AddRequest{Attachment: at.proto(), Netns: netns, Args: args, Config: cfg.proto()})
	if err != nil {
		return Added{}, c.explain(err)
	}
	addrs, err := addresses(resp.GetAddresses())
	return Added{
		HostInterface: resp.GetHostInterface(), MAC: resp.GetMac(), MTU: int(resp.GetMtu()),
		Addresses: addrs, Closed: resp.GetClosed(),
	}, err
}

// Delete unwires a pod; what is not there is no error.
func (c *Client) Delete(ctx context.Context, at Attachment, netns string, args map[string]string) error {
	_, err := c.cni.Delete(ctx, &felixv1.DeleteRequest{Attachment: at.proto(), Netns: netns, Args: args})
	return c.explain(err)
}

// Check compares a wired pod with the result of its Add; ErrMismatch names the first difference.
func (c *Client) Check(ctx context.Context, at Attachment, netns, mac string, addrs []netip.Addr) error {
	_, err := c.cni.Check(ctx, &felixv1.CheckRequest{Attachment: at.proto(), Netns: netns, Mac: mac, Addresses: bytesOf(addrs)})
	return c.explain(err)
}

// Status returns nil if pods can be wired now.
func (c *Client) Status(ctx context.Context) error {
	resp, err := c.cni.Status(ctx, &felixv1.StatusRequest{})
	if err != nil {
		return c.explain(err)
	}
	if !resp.GetReady() {
		return fmt.Errorf("%w: felix is not ready: %v", ErrTryAgain, resp.GetReasons())
	}
	return nil
}

// GC removes every attachment of the network that is not listed.
func (c *Client) GC(ctx context.Context, network string, valid []Attachment) error {
	req := &felixv1.GcRequest{Network: network}
	for _, at := range valid {
		req.Valid = append(req.Valid, at.proto())
	}
	_, err := c.cni.Gc(ctx, req)
	return c.explain(err)
}

// Assign gives an attachment its addresses without wiring it.
func (c *Client) Assign(ctx context.Context, at Attachment, args map[string]string, cfg Config) ([]netip.Addr, error) {
	resp, err := c.ipam.Assign(ctx, &felixv1.AssignRequest{Attachment: at.proto(), Args: args, Config: cfg.proto()})
	if err != nil {
		return nil, c.explain(err)
	}
	return addresses(resp.GetAddresses())
}

// Unassign frees the addresses of an attachment.
func (c *Client) Unassign(ctx context.Context, at Attachment) error {
	_, err := c.ipam.Unassign(ctx, &felixv1.UnassignRequest{Attachment: at.proto()})
	return c.explain(err)
}

// DumpEntry is one object of the kernel as felix wants it and as it is.
type DumpEntry struct {
	Section, Key, Desired, Actual, Error string
}

// Dump returns desired beside actual state; see StateService.Dump.
func (c *Client) Dump(ctx context.Context, sections []string, differencesOnly bool) ([]DumpEntry, error) {
	resp, err := c.live.Dump(ctx, &felixv1.DumpRequest{Sections: sections, DifferencesOnly: differencesOnly})
	if err != nil {
		return nil, c.explain(err)
	}
	return entriesOf(resp), nil
}

func (a Attachment) proto() *felixv1.Attachment {
	return &felixv1.Attachment{Network: a.Network, ContainerId: a.ContainerID, Interface: a.Interface}
}

func (c Config) proto() *felixv1.NetworkConfig {
	out := &felixv1.NetworkConfig{
		Mtu: uint32(c.MTU), AssignIpv4: c.IPv4, AssignIpv6: c.IPv6, Ipv4Pools: c.IPv4Pools, Ipv6Pools: c.IPv6Pools,
		Addresses: bytesOf(c.Addresses), KubernetesPolicy: c.KubernetesPolicy, AllowIpForwarding: c.AllowForwarding,
		IpAddrsNoIpam: c.AddrsNoIPAM, FloatingIps: c.FloatingIPs, NumQueues: uint32(c.Queues), Labels: c.Labels,
		RequirePolicy: c.RequirePolicy,
	}
	if c.PolicyWait > 0 {
		out.PolicyWait = durationpb.New(c.PolicyWait)
	}
	return out
}

// explain turns a status into an error that says what to do.
func (c *Client) explain(err error) error {
	s, ok := status.FromError(err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return err
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%w: felix at %s: %s; is felix running on this node?", ErrTryAgain, c.path, s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: felix at %s did not answer in time", ErrTryAgain, c.path)
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %s", ErrInvalid, s.Message())
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %s", ErrMismatch, s.Message())
	}
	return errors.New(s.Message())
}

func bytesOf(addrs []netip.Addr) [][]byte {
	out := make([][]byte, len(addrs))
	for i, a := range addrs {
		out[i] = a.AsSlice()
	}
	return out
}

func addresses(in [][]byte) ([]netip.Addr, error) {
	out := make([]netip.Addr, len(in))
	for i, b := range in {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, fmt.Errorf("felix sent an address of %d bytes", len(b))
		}
		out[i] = a
	}
	return out, nil
}
