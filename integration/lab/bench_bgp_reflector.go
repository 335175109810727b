package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	birdclient "github.com/muslin-net/muslin/bird/client"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

const (
	reflectorClients = 50
	reflectorBlocks  = 4 // of each client
	reflectorRounds  = 3
	reflectorSingles = 10 // routes that come one by one afterwards
)

// bgpReflector measures a reflector with clients that cost nearly nothing, and connect all at once: the time from the first
// connection until each client has been told the routes of all others; and from one client's further route until the last of
// the others has it.
func (b *bench) bgpReflector(ctx context.Context) (err error) {
	t, err := ParseTopology("a reflector", []byte(meshTopology))
	if err != nil {
		return err
	}
	m := mesh{n: reflectorClients + 1} // the first is the reflector
	m.lab, err = Up(ctx, Options{Name: "bench-reflector", StateDir: filepath.Join(b.dir, "reflector"), BinDir: b.BinDir, Topology: t, Attached: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.lab.Down(context.WithoutCancel(ctx))) }()
	for i := range m.n {
		if _, err := m.lab.Run(ctx, meshWhere, "ip", "address", "add", m.address(i).String()+"/32", "dev", "lo"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(nodeDir(m.lab.dir, meshWhere), "run", m.name(0)), 0o700); err != nil {
		return err
	}
	var all, rest, one, cpu, rss [2][]float64
	for range reflectorRounds {
		for i, launch := range []func(context.Context) (meshed, error){m.reflectorOurs, m.reflectorBird2} {
			r, err := m.reflect(ctx, launch)
			if err != nil {
				return err
			}
			all[i], rest[i], one[i] = append(all[i], r.all), append(rest[i], r.rest), append(one[i], r.one...)
			cpu[i], rss[i] = append(cpu[i], r.used.cpu), append(rss[i], r.used.rss)
		}
	}
	name := fmt.Sprintf("bgp.reflector%d", reflectorClients)
	b.beside(name, median(all[0]), median(all[1]), "ms")
	b.beside(name+".lastup", median(rest[0]), median(rest[1]), "ms")
	b.beside(name+".cpu", median(cpu[0]), median(cpu[1]), "s")
	b.beside(name+".rss", median(rss[0]), median(rss[1]), "MiB")
	b.beside(name+".route", median(one[0]), median(one[1]), "ms")
	return nil
}

// reflected is the outcome of one launch.
type reflected struct {
	all  float64   // ms until all have all
	rest float64   // ms of these after the last session was up
	one  []float64 // ms for each further route
	used cost      // until all have all
}

// reflect launches a reflector, connects all clients, and then has one announce further routes.
func (m *mesh) reflect(ctx context.Context, launch func(context.Context) (meshed, error)) (out reflected, err error) {
	ctx, cancel := context.WithTimeout(ctx, bgpDeadline)
	defer cancel()
	reflector, err := launch(ctx)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, reflector.stop()) }()
	if err := reflector.done(ctx); err != nil {
		return out, err
	}
	before, err := costOf(ctx, m.lab, meshWhere, reflector.pid)
	if err != nil {
		return out, err
	}
	clients := make([]*bgpPeer, reflectorClients)
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.close()
			}
		}
	}()
	began := time.Now()
	group, connecting := errgroup.WithContext(ctx)
	for i := range clients {
		group.Go(func() (err error) {
			clients[i], err = eventually(connecting, func() (*bgpPeer, error) { return m.client(connecting, i+1) })
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return out, err
	}
	up := time.Now()
	last, err := lastComplete(ctx, clients)
	if err != nil {
		return out, err
	}
	after, err := costOf(ctx, m.lab, meshWhere, reflector.pid)
	if err != nil {
		return out, err
	}
	out.all, out.rest, out.used = ms(last.Sub(began)), ms(last.Sub(up)), after.since(before)
	for i := range reflectorSingles {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 26)
		began := time.Now()
		if err := clients[0].write(bgpAnnouncement([]netip.Prefix{prefix}, m.address(1))); err != nil {
			return out, err
		}
		if last, err = lastComplete(ctx, clients[1:]); err != nil {
			return out, err
		}
		out.one = append(out.one, ms(last.Sub(began)))
	}
	return out, nil
}

// client opens a session with the reflector, and announces its blocks.
func (m *mesh) client(ctx context.Context, i int) (*bgpPeer, error) {
	f, err := m.lab.socket(ctx, meshWhere, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	fd, err := rawFD(f)
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(m.address(i), 0)))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	conn, err := connectSocket(f, netip.AddrPortFrom(m.address(0), 179), time.Now().Add(bgpDeadline))
	if err != nil {
		return nil, err
	}
	p, err := openBGP(conn, bgpAS, m.address(i), &heard{
		prefixes: map[netip.Prefix]struct{}{}, want: (reflectorClients - 1) * reflectorBlocks, complete: make(chan time.Time, 1+reflectorSingles),
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("client %d: %w", i, err), conn.Close())
	}
	var blocks []netip.Prefix
	for j := range reflectorBlocks {
		blocks = append(blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), byte(64 * j)}), 26))
	}
	return p, p.write(bgpAnnouncement(blocks, m.address(i)))
}

// lastComplete is when the last of the clients had what was due.
func lastComplete(ctx context.Context, clients []*bgpPeer) (last time.Time, err error) {
	for i, c := range clients {
		select {
		case at := <-c.heard.complete:
			if at.After(last) {
				last = at
			}
		case <-c.done:
			return last, fmt.Errorf("client %d of %d: the session ended: %w", i+1, len(clients), c.err)
		case <-ctx.Done():
			return last, fmt.Errorf("client %d of %d has not been told all: %w", i+1, len(clients), ctx.Err())
		}
	}
	return last, nil
}

// reflectorOurs launches a reflector of ours.
func (m *mesh) reflectorOurs(ctx context.Context) (meshed, error) {
	config := &birdv1.Config{
		Generation: 1, RouterId: m.address(0).AsSlice(), AsNumber: bgpAS, ListenAddresses: [][]byte{m.address(0).AsSlice()},
		ClusterId: m.address(0).AsSlice(),
		Export:    &birdv1.ExportPolicy{Pools: []*birdv1.ExportPool{{Prefix: wirePrefix(netip.MustParsePrefix("192.168.0.0/16"))}, {Prefix: wirePrefix(netip.MustParsePrefix("172.16.0.0/16"))}}},
	}
	for i := 1; i < m.n; i++ {
		config.Peers = append(config.Peers, &birdv1.Peer{
			Name: "Node_" + m.address(i).String(), Type: birdv1.PeerType_PEER_TYPE_GLOBAL, Address: m.address(i).AsSlice(), AsNumber: bgpAS,
			SourceAddress: m.address(0).AsSlice(), Passive: true, ReflectorClient: true,
		})
	}
	bird, err := startBird(ctx, m.lab, meshWhere, m.name(0), config)
	if err != nil {
		return meshed{}, err
	}
	return meshed{bird.pid, bird.stop, func(ctx context.Context) error {
		_, err := eventually(ctx, func() (struct{}, error) {
			st, err := bird.client.Peers(ctx, "")
			waiting := 0
			for _, p := range st.Peers {
				if p.State == birdclient.Active {
					waiting++
				}
			}
			if err == nil && waiting < m.n-1 {
				err = fmt.Errorf("%d of %d sessions wait for their client", waiting, m.n-1)
			}
			return struct{}{}, err
		})
		return err
	}}, nil
}

// reflectorBird2 launches a BIRD 2 as a reflector.
func (m *mesh) reflectorBird2(ctx context.Context) (meshed, error) {
	var c strings.Builder
	fmt.Fprintf(&c, "router id %s;\nprotocol device {}\nprotocol direct { ipv4; interface \"*\"; }\n", m.address(0))
	for i := 1; i < m.n; i++ {
		fmt.Fprintf(&c, "protocol bgp c%d { local %s as %d; neighbor %s as %d; strict bind; rr client; passive; ipv4 { import all; export where source = RTS_BGP; }; }\n",
			i, m.address(0), bgpAS, m.address(i), bgpAS)
	}
	pid, stop, err := startBird2(ctx, m.lab, meshWhere, m.name(0), c.String())
	if err != nil {
		return meshed{}, err
	}
	return meshed{pid, stop, m.listens}, nil
}

// listens returns when the reflector takes connections. The one that finds out comes from an address of no client.
func (m *mesh) listens(ctx context.Context) error {
	_, err := eventually(ctx, func() (struct{}, error) {
		c, err := m.lab.Dial(ctx, meshWhere, netip.AddrPortFrom(m.address(0), 179))
		if err == nil {
			err = c.Close()
		}
		return struct{}{}, err
	})
	return err
}
