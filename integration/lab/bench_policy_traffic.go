package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// policyPath is two nodes in one subnet.
const policyPath = `
subnets: [{name: flat, prefixes: [10.55.0.0/24]}]
nodes:
- {name: worker-1, addresses: [10.55.0.10]}
- {name: worker-2, addresses: [10.55.0.11]}
pods: [{name: pod-1, node: worker-1}, {name: pod-2, node: worker-2}]
`

// The two policies of each pod: the first forbids what nobody does, by so many rules as are measured, the second allows all.
const (
	policyBefore = "bench-1"
	policyAllows = "bench-2"
)

// policyRow is one thing to measure of packets.
type policyRow struct {
	suffix string
	mode   Mode
	rules  int // of the first policy, in each direction
	set    int // members of the set that its only rule asks; 0 for none
}

func policyRows() []policyRow {
	return []policyRow{
		{"", ModeDirect, 1, 0},
		{".rules100", ModeDirect, 100, 0},
		{".rules1000", ModeDirect, 1000, 0},
		{".set100k", ModeDirect, 1, 100_000},
		{".vxlan", ModeVXLAN, 1, 0},
	}
}

// forbids is the first policy's rules. Every packet that begins a connection is compared with each.
func (r policyRow) forbids() (out []api.Rule) {
	if r.set > 0 {
		return []api.Rule{overTCP(api.Deny, api.EntityRule{Selector: "has(bench-members)"}, 0)}
	}
	for i := range r.rules {
		out = append(out, overTCP(api.Deny, api.EntityRule{Nets: []string{fmt.Sprintf("198.18.%d.%d/32", i>>8, i&255)}}, uint16(20_000+r.rules)))
	}
	return out
}

// policySide is a cluster whose nodes have one of the drivers.
type policySide struct {
	ruleDriver
	lab    *Lab
	store  *store
	before api.Object // the first policy as it is stored
}

// policyTraffic measures round trips, and connections of one byte each way, by both drivers beside plain routing by hand
// without connection tracking: all are up at once, and measured in turns. So is what any network costs that tracks
// connections, translates what leaves the pool, and looks at the source of what a pod sends, by hand and without policy.
func (b *bench) policyTraffic(ctx context.Context) (err error) {
	path := bench{BenchOptions: b.BenchOptions, dir: filepath.Join(b.dir, "policy")}
	if path.topology, err = ParseTopology("the path of packets under policy", []byte(policyPath)); err != nil {
		return err
	}
	path.topology.Pools = []Pool{handPool(false)}
	guarded := bench{BenchOptions: b.BenchOptions, dir: filepath.Join(b.dir, "policy-guarded"), topology: path.topology}
	var sides []*policySide
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx)))
		}
		err = errors.Join(err, path.close(context.WithoutCancel(ctx)), guarded.close(context.WithoutCancel(ctx)))
	}()
	for _, d := range ruleDrivers() {
		s := &policySide{ruleDriver: d}
		s.lab, err = Up(ctx, Options{
			Name: "bench-" + d.name, StateDir: filepath.Join(path.dir, d.name), BinDir: b.BinDir, Topology: path.topology.withEnv(d.env), Attached: true,
		})
		if err != nil {
			return err
		}
		sides = append(sides, s)
		if s.store, err = openStore(ctx, s.lab, path.topology.Nodes[0].Name); err != nil {
			return err
		}
		all := []api.Rule{{Action: api.Allow}}
		s.before = globalPolicy(policyBefore, 1, "all()", policyRow{rules: 2}.forbids(), policyRow{rules: 2}.forbids())
		if err := s.store.put(ctx, globalPolicy(policyAllows, 2, "all()", all, all)); err != nil {
			return err
		}
	}
	for name, hand := range map[string]*bench{"bench-no-policy": &path, "bench-guarded": &guarded} {
		if err := hand.upByHand(ctx, name); err != nil {
			return err
		}
		if err := handRoutes(ctx, hand.hand, byHand(path.topology), ModeDirect); err != nil {
			return err
		}
	}
	if _, err := guard(ctx, guarded.hand, byHand(path.topology)); err != nil {
		return err
	}
	for _, row := range policyRows() {
		if err := path.policyRow(ctx, row, sides, guarded.hand); err != nil {
			return fmt.Errorf("policy%s: %w", row.suffix, err)
		}
	}
	return nil
}

func (s *policySide) close(ctx context.Context) (err error) {
	if s.store != nil {
		err = s.store.close()
	}
	return errors.Join(err, s.lab.Down(ctx))
}

func (b *bench) policyRow(ctx context.Context, row policyRow, sides []*policySide, guarded *Lab) error {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	labs := []*Lab{}
	for _, s := range sides {
		if err := s.lab.SetMode(ctx, b.topology.Pools[0].Name, row.mode); err != nil {
			return err
		}
		if err := s.lab.AwaitRoutes(ctx, b.topology, row.mode); err != nil {
			return err
		}
		if err := s.take(ctx, row); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		labs = append(labs, s.lab)
	}
	labs = append(labs, b.hand, guarded)
	for i, l := range labs {
		mode := ModeDirect
		if i < len(sides) {
			mode = row.mode
		}
		if err := b.goes(ctx, l, mode); err != nil {
			return err
		}
	}
	for _, of := range []struct {
		name    string
		measure func(context.Context, ...*Lab) ([][]float64, error)
	}{{"rr", roundTrips}, {"crr", connections}} {
		took, err := of.measure(ctx, labs...)
		if err != nil {
			return fmt.Errorf("%s: %w", of.name, err)
		}
		for i, s := range sides {
			b.compare("policy."+of.name+"."+s.name+row.suffix, "us", took[i], took[len(sides)], "plain-routing")
		}
		if row == policyRows()[0] {
			b.compare("policy."+of.name+".guarded", "us", took[len(sides)+1], took[len(sides)], "plain-routing")
		}
	}
	return nil
}

// take changes the policies to those of a row, and returns when the kernels of both nodes have them.
func (s *policySide) take(ctx context.Context, row policyRow) error {
	if row.set > 0 {
		if err := s.store.put(ctx, memberSets(row.set)...); err != nil {
			return err
		}
	}
	p := s.before.(*api.GlobalNetworkPolicy)
	p.Spec.Ingress, p.Spec.Egress = row.forbids(), row.forbids()
	stored := []api.Object{p}
	if err := s.store.put(ctx, stored...); err != nil {
		return err
	}
	s.before = stored[0]
	for _, node := range []string{"worker-1", "worker-2"} {
		if _, err := eventually(ctx, func() (struct{}, error) { return struct{}{}, s.has(ctx, node, row) }); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
	}
	return nil
}

var policySet = regexp.MustCompile(`cali40s[^\s"]*`)

// has tells whether a node's kernel has the policies of a row.
func (s *policySide) has(ctx context.Context, node string, row policyRow) error {
	text, err := s.ofPolicy(ctx, s.lab, node, policyBefore)
	if err != nil {
		return err
	}
	set := policySet.FindString(text)
	if row.set == 0 {
		if n := lineCount(text, fmt.Sprint(20_000+row.rules)); n != row.rules || set != "" {
			return fmt.Errorf("%d rules are there, %d are due", n, row.rules)
		}
		return nil
	}
	if set == "" {
		return errors.New("no rule names a set")
	}
	n, err := s.members(ctx, s.lab, node, set)
	if err == nil && n != row.set {
		err = fmt.Errorf("the set has %d members, %d are due", n, row.set)
	}
	return err
}

// memberSets are network sets with so many addresses together, no two of which could be one prefix.
func memberSets(n int) (out []api.Object) {
	const each = 10_000
	for first := 0; first < n; first += each {
		s := &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%d", first/each), Labels: map[string]string{"bench-members": ""}}}
		for i := first; i < min(first+each, n); i++ {
			a := netip.AddrFrom4([4]byte{11, byte(i >> 15), byte(i >> 7), byte(i << 1)})
			s.Spec.Nets = append(s.Spec.Nets, netip.PrefixFrom(a, 32).String())
		}
		out = append(out, s)
	}
	return out
}

// Connections are measured in windows as round trips are.
const (
	connectWindows = 60
	connectWindow  = 10 * time.Millisecond
)

// caller connects from pod-1 to a server in pod-2.
type caller struct {
	space  *os.File // pod-1's network namespace
	server *os.File // listens
	to     unix.Sockaddr
}

func (c caller) close() { closeAll([]*os.File{c.space, c.server}) }

// connections returns the time in microseconds of a connection with one byte each way, for each lab and window. The server
// closes first, so that the client's port is free at once.
func connections(ctx context.Context, labs ...*Lab) (out [][]float64, err error) {
	var callers []caller
	defer func() {
		for _, c := range callers {
			c.close()
		}
	}()
	for _, l := range labs {
		c, err := newCaller(ctx, l)
		if err != nil {
			return nil, err
		}
		callers = append(callers, c)
	}
	out = make([][]float64, len(callers))
	var g errgroup.Group
	for _, c := range callers {
		fd := int(c.server.Fd())
		g.Go(func() error { return onOwnThread(func() error { return serveBytes(fd) }) })
	}
	err = onOwnThread(func() error {
		if err := pin(0); err != nil {
			return err
		}
		undisturbed()
		for window := range connectWindows + 2 {
			for i, c := range callers {
				us, err := c.window(connectWindow)
				if err != nil {
					return err
				}
				if window >= 2 { // the first ones warm up
					out[i] = append(out[i], us)
				}
			}
		}
		return nil
	})
	for _, c := range callers {
		_ = unix.Shutdown(int(c.server.Fd()), unix.SHUT_RD)
	}
	return out, errors.Join(err, g.Wait())
}

func newCaller(ctx context.Context, l *Lab) (c caller, err error) {
	target, err := addressOf(ctx, l, "pod-2")
	if err != nil {
		return c, err
	}
	ln, err := l.Listen(ctx, "pod-2", netip.AddrPortFrom(target, 0))
	if err != nil {
		return c, err
	}
	defer func() { _ = ln.Close() }()
	c.to = sockaddr(netip.MustParseAddrPort(ln.Addr().String()))
	if c.server, err = ln.File(); err != nil {
		return c, err
	}
	blocking(c.server)
	guide, err := l.socket(ctx, "pod-1", unix.AF_INET, unix.SOCK_STREAM, 0) // it tells which namespace it is in
	if err != nil {
		return c, errors.Join(err, c.server.Close())
	}
	defer func() { _ = guide.Close() }()
	fd, err := unix.IoctlRetInt(int(guide.Fd()), unix.SIOCGSKNS)
	if err != nil {
		return c, errors.Join(fmt.Errorf("find the namespace of pod-1: %w", err), c.server.Close())
	}
	c.space = os.NewFile(uintptr(fd), "pod-1")
	return c, nil
}

// serveBytes answers connections with the byte they bring, and closes them, until the listener is shut down.
func serveBytes(listener int) error {
	if err := pin(0); err != nil {
		return err
	}
	undisturbed()
	b := make([]byte, 1)
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL):
			return nil
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		n, err := uninterrupted(unix.Read, fd, b)
		if err == nil && n == 1 {
			_, err = uninterrupted(unix.Write, fd, b)
		}
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
	}
}

// window connects again and again for a while, and returns the time of one in microseconds.
func (c caller) window(d time.Duration) (us float64, err error) {
	if err := unix.Setns(int(c.space.Fd()), unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("enter pod-1: %w", err)
	}
	count, began := 0, time.Now()
	for time.Since(began) < d {
		if err := c.call(); err != nil {
			return 0, err
		}
		count++
	}
	return float64(time.Since(began).Nanoseconds()) / 1000 / float64(count), nil
}

// call is one connection.
func (c caller) call() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, c.to)
	b := []byte{1}
	if err == nil {
		_, err = uninterrupted(unix.Write, fd, b)
	}
	for n := 1; err == nil && n > 0; { // the answer, and the end
		n, err = uninterrupted(unix.Read, fd, b)
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("call pod-2: %w", err)
	}
	return nil
}
