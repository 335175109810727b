package verb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	birdclient "github.com/muslin-net/muslin/bird/client"
	felixclient "github.com/muslin-net/muslin/felix/client"
	"github.com/muslin-net/muslin/internal/rpc"
	typhaclient "github.com/muslin-net/muslin/typha/client"
)

// How long a daemon has to answer: one of this node, and one that is asked through typha; routes may be many.
const (
	answer    = 2 * time.Second
	farAnswer = 10 * time.Second
	routes    = time.Minute
)

// live is the daemons of a node.
type live interface {
	// Felix fails if felix does not answer.
	Felix(ctx context.Context) error
	// Endpoints lists endpoints with what applies to them; a name chooses.
	Endpoints(ctx context.Context, name string) ([]felixclient.Endpoint, error)
	// Dump lists what felix wants in the kernel, beside what there is.
	Dump(ctx context.Context) ([]felixclient.DumpEntry, error)
	Peers(ctx context.Context, peer string) (birdclient.Status, error)
	Routes(ctx context.Context, view birdclient.View, peer string, within netip.Prefix, yield func(birdclient.Route)) error
	// Drain begins a drain, or takes it back.
	Drain(ctx context.Context, wait time.Duration, cancel bool) error
	Close() error
}

// errNoBird says that no bird runs on the node.
var errNoBird = errors.New("bird does not run")

// target is which node is asked, and how.
type target struct {
	node, nameFile       string
	birdSocket           string
	felixSocket          string
	typha                []string
	serverName, identity string
}

func (t *target) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.node, "node", "", "ask this node, through typha; default is the node that this runs on")
	f.StringVar(&t.birdSocket, "bird-socket", birdclient.DefaultSocket, "where bird serves on this node")
	f.StringVar(&t.felixSocket, "felix-socket", felixclient.DefaultSocket, "where felix serves on this node")
	f.StringVar(&t.nameFile, "node-name-file", "/var/lib/calico/nodename", "file with the name of this node")
	f.StringSliceVar(&t.typha, "typha", strings.FieldsFunc(os.Getenv("CALICO_TYPHA"), func(r rune) bool { return r == ',' }),
		"addresses of typha, host:port [$CALICO_TYPHA]")
	f.StringVar(&t.serverName, "typha-name", cmp.Or(os.Getenv("CALICO_TYPHA_NAME"), "typha"), "name in typha's certificate [$CALICO_TYPHA_NAME]")
	f.StringVar(&t.identity, "credentials", cmp.Or(os.Getenv("CALICO_TYPHA_CREDENTIALS"), "/etc/calico/operator"),
		"directory with ca.crt, tls.crt and tls.key of an operator [$CALICO_TYPHA_CREDENTIALS]")
}

// open finds the way to the node: its sockets, if it is this one and they may be used, else typha.
func (t *target) open() (live, error) {
	own := t.ownName()
	if t.node != "" && t.node != own {
		return t.relayed(t.node)
	}
	denied := false
	for _, socket := range []string{t.felixSocket, t.birdSocket} {
		conn, err := net.DialTimeout("unix", socket, answer)
		if err == nil {
			_ = conn.Close()
		}
		denied = denied || errors.Is(err, fs.ErrPermission)
	}
	if !denied {
		return t.local()
	}
	l, err := t.relayed(own)
	if err != nil {
		return nil, fmt.Errorf("the sockets of the node's daemons are for root: run this as root, or ask through typha: %w", err)
	}
	return l, nil
}

// ownName is the name of this node; empty if it is none.
func (t *target) ownName() string {
	name, err := os.ReadFile(t.nameFile)
	if err != nil {
		return os.Getenv("NODENAME")
	}
	return strings.TrimSpace(string(name))
}

func (t *target) relayed(node string) (live, error) {
	c, err := t.operator()
	if err != nil {
		return nil, err
	}
	if node == "" {
		return nil, errors.Join(errors.New("the name of this node is not known; give it by --node"), c.Close())
	}
	return &far{typha: c, node: node}, nil
}

// operator is the way to typha itself.
func (t *target) operator() (*typhaclient.Client, error) {
	if len(t.typha) == 0 {
		return nil, errors.New("where typha is, is not known; give its address by --typha host:port, or $CALICO_TYPHA")
	}
	file := func(name string) string { return filepath.Join(t.identity, name) }
	c, err := typhaclient.New(typhaclient.Config{
		Addresses: t.typha, ServerName: t.serverName, Log: slog.New(slog.DiscardHandler),
		Files: rpc.Files{CA: file("ca.crt"), Cert: file("tls.crt"), Key: file("tls.key")},
	})
	if err != nil {
		return nil, fmt.Errorf("typha: %w; give the directory of an operator's certificate by --credentials", err)
	}
	return c, nil
}

func (t *target) local() (live, error) {
	felix, err := felixclient.Dial(t.felixSocket)
	if err != nil {
		return nil, err
	}
	bird, err := birdclient.New(t.birdSocket)
	if err != nil {
		return nil, errors.Join(err, felix.Close())
	}
	return &near{felix: felix, bird: bird, socket: t.birdSocket}, nil
}

// near is this node.
type near struct {
	felix  *felixclient.Client
	bird   *birdclient.Client
	socket string
}

func (n *near) Felix(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	_, err := n.felix.Dump(ctx, []string{"none"}, true)
	return err
}

func (n *near) Dump(ctx context.Context) ([]felixclient.DumpEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, farAnswer)
	defer cancel()
	return n.felix.Dump(ctx, nil, false)
}

func (n *near) Endpoints(ctx context.Context, name string) ([]felixclient.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, farAnswer)
	defer cancel()
	return n.felix.Endpoints(ctx, name)
}

// listening fails if nobody serves bird's socket.
func (n *near) listening() error {
	c, err := net.DialTimeout("unix", n.socket, answer)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoBird, err)
	}
	return c.Close()
}

func (n *near) Peers(ctx context.Context, peer string) (birdclient.Status, error) {
	if err := n.listening(); err != nil {
		return birdclient.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	return n.bird.Peers(ctx, peer)
}

func (n *near) Routes(ctx context.Context, view birdclient.View, peer string, within netip.Prefix, yield func(birdclient.Route)) error {
	if err := n.listening(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, routes)
	defer cancel()
	return n.bird.Show(ctx, view, peer, within, yield)
}

func (n *near) Drain(ctx context.Context, wait time.Duration, cancel bool) error {
	if err := n.listening(); err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, answer)
	defer stop()
	if cancel {
		return n.bird.Undrain(ctx)
	}
	return n.bird.BeginDrain(ctx, wait)
}

func (n *near) Close() error { return errors.Join(n.bird.Close(), n.felix.Close()) }

// far is a node that is asked through typha.
type far struct {
	typha *typhaclient.Client
	node  string
}

func (f *far) ask(ctx context.Context, method typhaclient.Method, request []byte, timeout time.Duration, take func([]byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+answer)
	defer cancel()
	return f.typha.Ask(ctx, f.node, typhaclient.Question{Method: method, Request: request}, timeout, take)
}

// askBird is ask of bird, whose confd may not be connected.
func (f *far) askBird(ctx context.Context, method typhaclient.Method, request []byte, timeout time.Duration, take func([]byte) error) error {
	err := f.ask(ctx, method, request, timeout, take)
	if errors.Is(err, typhaclient.ErrNotFound) || errors.Is(err, typhaclient.ErrUnavailable) {
		return fmt.Errorf("%w: %w", errNoBird, err)
	}
	return err
}

func (f *far) Felix(ctx context.Context) error {
	return f.ask(ctx, typhaclient.FelixDump, felixclient.DumpQuestion([]string{"none"}, true), farAnswer, func([]byte) error { return nil })
}

func (f *far) Dump(ctx context.Context) (out []felixclient.DumpEntry, err error) {
	err = f.ask(ctx, typhaclient.FelixDump, felixclient.DumpQuestion(nil, false), farAnswer, func(body []byte) error {
		out, err = felixclient.ReadDump(body)
		return err
	})
	return out, err
}

func (f *far) Endpoints(ctx context.Context, name string) (out []felixclient.Endpoint, err error) {
	err = f.ask(ctx, typhaclient.FelixEndpoints, felixclient.EndpointsQuestion(name), farAnswer, func(body []byte) error {
		out, err = felixclient.ReadEndpoints(body)
		return err
	})
	return out, err
}

func (f *far) Peers(ctx context.Context, peer string) (out birdclient.Status, err error) {
	err = f.askBird(ctx, typhaclient.BirdPeers, birdclient.PeersQuestion(peer), farAnswer, func(body []byte) error {
		out, err = birdclient.ReadPeers(body)
		return err
	})
	return out, err
}

func (f *far) Routes(ctx context.Context, view birdclient.View, peer string, within netip.Prefix, yield func(birdclient.Route)) error {
	return f.askBird(ctx, typhaclient.BirdShow, birdclient.ShowQuestion(view, peer, within), routes, func(body []byte) error {
		return birdclient.ReadRoutes(body, yield)
	})
}

func (f *far) Drain(ctx context.Context, wait time.Duration, cancel bool) error {
	return f.askBird(ctx, typhaclient.BirdDrain, birdclient.DrainQuestion(wait, cancel), farAnswer, func([]byte) error { return nil })
}

func (f *far) Close() error { return f.typha.Close() }

// withNode opens the way to a node for one command.
func (t *target) withNode(ctx context.Context, do func(context.Context, live) error) error {
	l, err := t.open()
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, l), l.Close())
}
