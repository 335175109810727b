package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	birdclient "github.com/muslin-net/muslin/bird/client"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// bgpMeshRounds is how often a mesh is launched, in turns by us and by BIRD.
const bgpMeshRounds = 3

// bgpMeshes measures how long full meshes take from the launch of the first speaker until each has the block of every
// other. Only speakers run, without felix, as the others' side is a bare BIRD, too.
func (b *bench) bgpMeshes(ctx context.Context) error {
	for _, n := range []int{20, 40} {
		if err := b.bgpMesh(ctx, n); err != nil {
			return fmt.Errorf("%d speakers: %w", n, err)
		}
	}
	return nil
}

func (b *bench) bgpMesh(ctx context.Context, n int) (err error) {
	m := mesh{n: n}
	t, err := ParseTopology("a mesh", []byte(meshTopology))
	if err != nil {
		return err
	}
	name := fmt.Sprintf("mesh%d", n)
	m.lab, err = Up(ctx, Options{Name: "bench-" + name, StateDir: filepath.Join(b.dir, name), BinDir: b.BinDir, Topology: t, Attached: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.lab.Down(context.WithoutCancel(ctx))) }()
	for i := range n {
		if _, err := m.lab.Run(ctx, meshWhere, "ip", "address", "add", m.address(i).String()+"/32", "dev", "lo"); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(nodeDir(m.lab.dir, meshWhere), "run", m.name(i)), 0o700); err != nil {
			return err
		}
	}
	var took, cpu, rss [2][]float64
	for range bgpMeshRounds {
		for i, launch := range []func(context.Context, int) (meshed, error){m.ours, m.bird2} {
			d, used, err := m.measure(ctx, launch)
			if err != nil {
				return err
			}
			took[i], cpu[i], rss[i] = append(took[i], d.Seconds()), append(cpu[i], used.cpu/float64(n)), append(rss[i], used.rss/float64(n))
		}
	}
	b.beside("bgp."+name, median(took[0]), median(took[1]), "s")
	b.beside("bgp."+name+".cpu", median(cpu[0]), median(cpu[1]), "s")
	b.beside("bgp."+name+".rss", median(rss[0]), median(rss[1]), "MiB")
	return nil
}

// mesh is so many speakers, each on a machine of its own.
type mesh struct {
	lab *Lab
	n   int
}

// meshed is a speaker that was launched.
type meshed struct {
	pid  int
	stop func() error
	done func(context.Context) error // returns when it has what all others announce
}

// meshTopology is one machine for all speakers, each with an address on its loopback: on machines of their own they would need
// more neighbour entries than a kernel has for all its namespaces together.
const meshTopology = "{subnets: [{name: flat, prefixes: [10.52.0.0/24]}], nodes: [{name: mesh, addresses: [10.52.0.2], processes: []}]}"

const meshWhere = "mesh"

func (m *mesh) name(i int) string { return fmt.Sprintf("s%d", i) }

func (m *mesh) address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 51, 0, byte(10 + i)}) }

func (m *mesh) block(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 26)
}

// measure launches all speakers at once, and returns when the last is complete.
func (m *mesh) measure(ctx context.Context, launch func(context.Context, int) (meshed, error)) (took time.Duration, used cost, err error) {
	ctx, cancel := context.WithTimeout(ctx, bgpDeadline)
	defer cancel()
	speakers := make([]meshed, m.n)
	defer func() {
		for _, s := range speakers {
			if s.stop != nil {
				err = errors.Join(err, s.stop())
			}
		}
	}()
	began := time.Now()
	group, waiting := errgroup.WithContext(ctx)
	for i := range speakers {
		group.Go(func() (err error) {
			speakers[i], err = launch(ctx, i)
			if err == nil {
				err = speakers[i].done(waiting)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", m.name(i), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, used, err
	}
	took = time.Since(began)
	for _, s := range speakers {
		c, err := costOf(ctx, m.lab, meshWhere, s.pid)
		if err != nil {
			return 0, used, err
		}
		used.cpu, used.rss = used.cpu+c.cpu, used.rss+c.rss
	}
	return took, used, nil
}

// bird2 launches a BIRD 2.
func (m *mesh) bird2(ctx context.Context, own int) (meshed, error) {
	var c strings.Builder
	fmt.Fprintf(&c, "router id %s;\nprotocol device {}\nprotocol direct { ipv4; interface \"*\"; }\n", m.address(own))
	fmt.Fprintf(&c, "protocol static own { ipv4; route %s blackhole; }\n", m.block(own))
	for i := range m.n {
		if i == own {
			continue
		}
		fmt.Fprintf(&c, "protocol bgp m%d { local %s as %d; neighbor %s as %d; strict bind; connect delay time 1; connect retry time 1; error wait time 1, 2;", i,
			m.address(own), bgpAS, m.address(i), bgpAS)
		if dialled(m.address(own), m.address(i)) {
			fmt.Fprint(&c, " passive;")
		}
		fmt.Fprintln(&c, " ipv4 { import all; export where source = RTS_STATIC; next hop self; }; }")
	}
	pid, stop, err := startBird2(ctx, m.lab, meshWhere, m.name(own), c.String())
	if err != nil {
		return meshed{}, err
	}
	socket := filepath.Join(nodeDir(m.lab.dir, meshWhere), "run", m.name(own), "bird2.ctl")
	return meshed{pid, stop, func(ctx context.Context) error {
		_, err := eventually(ctx, func() (struct{}, error) {
			n, err := countBird2(socket)
			if err == nil && n < m.n {
				err = fmt.Errorf("it has %d blocks of %d", n, m.n)
			}
			return struct{}{}, err
		})
		return err
	}}, nil
}

// dialled tells which end of a session of the mesh waits for the other.
func dialled(own, other netip.Addr) bool { return other.String() > own.String() }

// ours launches a bird of ours, and plays its confd and felix.
func (m *mesh) ours(ctx context.Context, own int) (meshed, error) {
	var peers []*birdv1.Peer
	for i := range m.n {
		if i != own {
			peers = append(peers, &birdv1.Peer{
				Name: "Mesh_" + m.address(i).String(), Type: birdv1.PeerType_PEER_TYPE_MESH, Address: m.address(i).AsSlice(), AsNumber: bgpAS,
				SourceAddress: m.address(own).AsSlice(), Passive: dialled(m.address(own), m.address(i)),
			})
		}
	}
	bird, err := startBird(ctx, m.lab, meshWhere, m.name(own), &birdv1.Config{
		Generation: 1, RouterId: m.address(own).AsSlice(), AsNumber: bgpAS, ListenAddresses: [][]byte{m.address(own).AsSlice()}, Peers: peers,
		Export: &birdv1.ExportPolicy{
			Pools: []*birdv1.ExportPool{{Prefix: wirePrefix(netip.MustParsePrefix("192.168.0.0/16"))}}, OwnBlocks: []*birdv1.Prefix{wirePrefix(m.block(own))},
		},
	}, m.block(own))
	if err != nil {
		return meshed{}, err
	}
	return meshed{bird.pid, bird.stop, func(ctx context.Context) error { return bird.await(ctx, m.n-1) }}, nil
}

func wirePrefix(p netip.Prefix) *birdv1.Prefix {
	return &birdv1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

// lone is a bird of ours that runs alone on its machine.
type lone struct {
	pid    int
	stop   func() error
	client *birdclient.Client
	count  chan int // of prefixes that it has, the newest
}

// startBird launches a bird, configures it, and announces blocks as felix does. Its files are in a directory below /run.
func startBird(ctx context.Context, l *Lab, where, dir string, config *birdv1.Config, blocks ...netip.Prefix) (*lone, error) {
	files := filepath.Join(nodeDir(l.dir, where), "run", dir)
	for _, saved := range []string{"bird-applied.pb", "bird-routes.json"} { // it begins anew, and does not restart
		if err := os.Remove(filepath.Join(files, saved)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	// Several may share a machine, so that any free port has to do for health.
	command := fmt.Sprintf("bird --health=127.0.0.1:0 --socket /run/%s/bird.sock --gobgp-socket= --lib-dir /run/%s >/run/%s/bird.log 2>&1", dir, dir, dir)
	pid, halt, err := startMarked(ctx, l, where, filepath.Join(dir, "bird.pid"), command)
	if err != nil {
		return nil, err
	}
	b := &lone{pid: pid, stop: halt, count: make(chan int, 1)}
	socket := filepath.Join(files, "bird.sock")
	_, err = eventually(ctx, func() (struct{}, error) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return struct{}{}, err
	})
	if err != nil {
		return nil, errors.Join(err, halt())
	}
	client, err := birdclient.New(socket)
	if err != nil {
		return nil, errors.Join(err, halt())
	}
	b.client = client
	running, cancel := context.WithCancel(ctx)
	b.stop = func() error {
		cancel()
		return errors.Join(client.Close(), halt())
	}
	routes := client.Routes(discard())
	for _, p := range blocks {
		routes.Announce(birdclient.LocalRoute{Prefix: p})
	}
	routes.SnapshotEnd()
	go func() {
		has := map[netip.Prefix]bool{}
		_ = routes.Run(running, func(u birdclient.Update) { // it returns nothing but nil
			for _, best := range u.Best {
				if delete(has, best.Prefix); len(best.Paths) > 0 {
					has[best.Prefix] = true
				}
			}
			select {
			case <-b.count:
			default:
			}
			b.count <- len(has)
		})
	}()
	if _, err := client.Apply(ctx, config); err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return b, nil
}

// await returns when the bird has that many prefixes.
func (b *lone) await(ctx context.Context, prefixes int) error {
	last := 0
	for last < prefixes {
		select {
		case <-ctx.Done():
			return fmt.Errorf("it has %d prefixes of %d: %w", last, prefixes, ctx.Err())
		case last = <-b.count:
		}
	}
	return nil
}
