package storm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/integration/storm/history"
)

// Size is how large a world is.
type Size struct {
	Nodes      int
	Pods       int // on each node
	Namespaces int
	Policies   int // in each namespace, and as many cluster-wide ones as there are namespaces
	Sets       int
}

// writers is how many write at a time. An object is one writer's, so that its writes have an order.
const writers = 4

// firstSet is the number of the first set as a marked object; nodes come before.
const firstSet = 10_000

// World is what the datastore holds, and who changes it. Its objects tell which write of them they are of.
type World struct {
	size   Size
	store  datastore.Client
	writes *history.Writes
	hands  [writers]*hand
}

// hand is one writer. It is used by one goroutine at a time.
type hand struct {
	world   *World
	random  *rand.Rand
	things  []*thing
	deleted []history.Write // whose revisions are not known yet
}

// thing is one object.
type thing struct {
	key     api.Key
	object  string // as marks call it; empty for what has no mark
	mark    uint64
	there   bool
	mayGo   bool                         // it is deleted and made again at times
	content func(mark uint64) api.Object // as of a write
	change  func(o api.Object, mark uint64)
}

// NewWorld prepares the objects; Fill writes them.
func NewWorld(size Size, store datastore.Client, writes *history.Writes, seed uint64) *World {
	w := &World{size: size, store: datastore.Validating(store), writes: writes}
	for i := range w.hands {
		w.hands[i] = &hand{world: w, random: rand.New(rand.NewPCG(seed, uint64(i)))}
	}
	for i, t := range w.all() {
		h := w.hands[i%writers]
		h.things = append(h.things, t)
	}
	return w
}

// Nodes are the names of the nodes.
func (w *World) Nodes() (names []string) {
	for i := range w.size.Nodes {
		names = append(names, nodeName(i))
	}
	return names
}

func nodeName(i int) string      { return fmt.Sprintf("n%04d", i) }
func namespaceName(i int) string { return fmt.Sprintf("team%d", i) }

// all are the things of the world but for pools and profiles, which do not change.
func (w *World) all() (list []*thing) {
	for i := range w.size.Nodes {
		list = append(list, nodeThing(i))
		list = append(list, blockThing(i)...)
		for p := range w.size.Pods {
			list = append(list, w.podThing(i, p))
		}
	}
	for i := range w.size.Sets {
		list = append(list, setThing(i))
	}
	for n := range w.size.Namespaces {
		list = append(list, globalPolicy(n, w.size.Sets))
		for p := range w.size.Policies {
			list = append(list, policyThing(n, p, w.size.Sets))
		}
	}
	return list
}

func nodeThing(i int) *thing {
	make := func(mark uint64) api.Object {
		n := &api.Node{}
		n.Name = nodeName(i)
		n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("172.16.%d.%d/16", i/250, i%250+1), IPv6Address: nodeMark(i, mark)}
		return n
	}
	return &thing{
		key: api.Key{Kind: "Node", Name: nodeName(i)}, object: history.Numbered(uint16(i + 1)), content: make,
		// Typha writes to Nodes too: all else stays.
		change: func(o api.Object, mark uint64) { o.(*api.Node).Spec.BGP.IPv6Address = nodeMark(i, mark) },
	}
}

func nodeMark(i int, mark uint64) string { return history.Address(uint16(i+1), mark).String() + "/64" }

// podPool has the addresses of pods, which the world gives; tunnelPool those of tunnels, which typha does.
const (
	podPool    = "10.128.0.0/9"
	tunnelPool = "10.64.0.0/12"
)

// podAddress is the address of a pod: 64 for each node.
func podAddress(node, pod int) netip.Addr {
	n := node*64 + pod
	return netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)})
}

// blockThing are the block of a node and its claim, which all nodes have a route of.
func blockThing(i int) []*thing {
	cidr := netip.PrefixFrom(podAddress(i, 0), 26)
	block := func(uint64) api.Object {
		b := api.NewIPAMBlock(cidr)
		affinity := "host:" + nodeName(i)
		b.Spec.Affinity = &affinity
		return b
	}
	claim := func(mark uint64) api.Object {
		state := api.AffinityConfirmed
		if mark%2 == 0 {
			state = api.AffinityPending // the route goes, and comes with the next write
		}
		return api.NewBlockAffinity(api.AffinityHost, nodeName(i), cidr, state)
	}
	return []*thing{
		{key: api.KeyOf(block(1)), content: block, mayGo: true},
		{key: api.KeyOf(claim(1)), content: claim},
	}
}

func (w *World) podThing(node, pod int) *thing {
	name, space := history.Pod(fmt.Sprintf("p%d", pod), nodeName(node)), namespaceName((node+pod)%w.size.Namespaces)
	spec := api.WorkloadEndpointSpec{
		Orchestrator: api.OrchestratorKubernetes, Node: nodeName(node), Pod: name, Endpoint: "eth0",
		IPNetworks:    []string{podAddress(node, pod+1).String() + "/32"},
		InterfaceName: fmt.Sprintf("cali%x", node*64+pod), Profiles: []string{"kns." + space},
	}
	make := func(mark uint64) api.Object {
		e := &api.WorkloadEndpoint{Spec: spec}
		e.Namespace = space
		e.Spec.ContainerID = strconv.FormatUint(mark, 10)
		e.Labels = map[string]string{"app": fmt.Sprintf("a%d", (uint64(node+pod)+mark/3)%8), "role": fmt.Sprintf("r%d", mark%2)}
		e.Default()
		return e
	}
	return &thing{key: api.KeyOf(make(1)), object: "k8s/" + space + "/" + name + "/eth0", content: make, mayGo: true}
}

func setThing(i int) *thing {
	number := uint16(firstSet + i)
	make := func(mark uint64) api.Object {
		s := &api.GlobalNetworkSet{}
		s.Name = fmt.Sprintf("set%d", i)
		s.Labels = map[string]string{"set": fmt.Sprintf("s%d", i), "group": fmt.Sprintf("g%d", i%3)}
		s.Spec.Nets = []string{history.Address(number, mark).String() + "/128", fmt.Sprintf("192.0.2.%d/32", mark%250+1)}
		return s
	}
	return &thing{key: api.KeyOf(make(1)), object: history.Numbered(number), content: make, mayGo: true}
}

// rules are those of a policy: sets by their own label and by their group's, so that a view shows one object in several places,
// and pods, whose labels change.
func rules(mark uint64, n, sets int) []api.Rule {
	r := api.Rule{Action: api.Allow, Metadata: &api.RuleMetadata{Annotations: map[string]string{history.Annotation: strconv.FormatUint(mark, 10)}}}
	r.Source.Selector = fmt.Sprintf("set == 's%d'", n%sets)
	other := api.Rule{Action: api.Allow}
	other.Source.Selector = fmt.Sprintf("group == 'g%d'", n%3)
	pods := api.Rule{Action: api.Allow}
	pods.Source.Selector = fmt.Sprintf("app == 'a%d' && role == 'r0'", n%8)
	return []api.Rule{r, other, pods}
}

func policyThing(space, n, sets int) *thing {
	make := func(mark uint64) api.Object {
		p := &api.NetworkPolicy{}
		p.Name, p.Namespace = fmt.Sprintf("p%d", n), namespaceName(space)
		p.Spec.Selector = fmt.Sprintf("app == 'a%d'", (uint64(n)+mark/5)%8)
		p.Spec.Ingress = rules(mark, space+n, sets)
		return p
	}
	return &thing{key: api.KeyOf(make(1)), object: fmt.Sprintf("np/%s/p%d", namespaceName(space), n), content: make, mayGo: true}
}

func globalPolicy(n, sets int) *thing {
	make := func(mark uint64) api.Object {
		p := &api.GlobalNetworkPolicy{}
		p.Name = fmt.Sprintf("g%d", n)
		p.Spec.Selector = fmt.Sprintf("app in {'a%d', 'a%d'}", n%8, (n+1)%8)
		p.Spec.Ingress = rules(mark, n, sets)
		return p
	}
	return &thing{key: api.KeyOf(make(1)), object: fmt.Sprintf("gnp/g%d", n), content: make}
}

// Fill writes everything once.
func (w *World) Fill(ctx context.Context) error {
	h := w.hands[0]
	for i, cidr := range []string{podPool, tunnelPool} {
		p := &api.IPPool{}
		p.Name, p.Spec.CIDR = fmt.Sprintf("pool%d", i), cidr
		if i == 1 {
			p.Spec.VXLANMode = api.VXLANCrossSubnet
		}
		if err := h.put(ctx, &thing{key: api.KeyOf(p), content: func(uint64) api.Object { return p }}); err != nil {
			return err
		}
	}
	for i := range w.size.Namespaces {
		p := &api.Profile{}
		p.Name = "kns." + namespaceName(i)
		p.Spec.LabelsToApply = map[string]string{"pcns.team": namespaceName(i)}
		p.Spec.Egress = []api.Rule{{Action: api.Allow}}
		if err := h.put(ctx, &thing{key: api.KeyOf(p), content: func(uint64) api.Object { return p }}); err != nil {
			return err
		}
	}
	return w.each(ctx, func(ctx context.Context, h *hand) error {
		for _, t := range h.things {
			if err := h.put(ctx, t); err != nil {
				return err
			}
		}
		return nil
	})
}

// Churn changes things, so many a second, until ctx ends. Whatever the datastore goes through, writes are repeated until they
// are done; only one that can never be done is an error.
func (w *World) Churn(ctx context.Context, perSecond int) error {
	return w.each(ctx, func(ctx context.Context, h *hand) error {
		tick := time.NewTicker(time.Second * writers / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if err := h.step(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	})
}

func (w *World) each(ctx context.Context, do func(context.Context, *hand) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, h := range w.hands {
		group.Go(func() error { return do(ctx, h) })
	}
	return group.Wait()
}

// step changes one thing.
func (h *hand) step(ctx context.Context) error {
	t := h.things[h.random.IntN(len(h.things))]
	if t.there && t.mayGo && h.random.IntN(100) < 15 {
		return h.remove(ctx, t)
	}
	return h.put(ctx, t)
}

// again is how long a write that failed waits before it is repeated.
const again = 100 * time.Millisecond

// attempt is how long a write may take before it is repeated.
const attempt = 5 * time.Second

// put writes a thing's next content, until it is written or ctx ends.
func (h *hand) put(ctx context.Context, t *thing) error {
	t.mark++
	for {
		stored, err := h.write(ctx, t)
		if err == nil {
			t.there = true
			h.note(t, stored)
			return nil
		}
		if err := h.rest(ctx, err); err != nil {
			return err
		}
	}
}

// write creates or replaces.
func (h *hand) write(ctx context.Context, t *thing) (api.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	had, err := h.world.store.Get(ctx, t.key)
	if errors.Is(err, datastore.ErrNotFound) {
		return h.world.store.Create(ctx, t.content(t.mark))
	}
	if err != nil {
		return nil, err
	}
	next := t.content(t.mark)
	if t.change != nil {
		next = had.DeepCopyObject().(api.Object)
		t.change(next, t.mark)
	}
	next.SetResourceVersion(had.GetResourceVersion())
	return h.world.store.Update(ctx, next)
}

func (h *hand) remove(ctx context.Context, t *thing) error {
	t.mark++
	for {
		one, cancel := context.WithTimeout(ctx, attempt)
		_, err := h.world.store.Delete(one, t.key, datastore.Precondition{})
		cancel()
		if err == nil || errors.Is(err, datastore.ErrNotFound) {
			t.there = false
			if t.object != "" {
				h.deleted = append(h.deleted, history.Write{Object: t.object, Mark: t.mark})
			}
			return nil
		}
		if err := h.rest(ctx, err); err != nil {
			return err
		}
	}
}

// rest waits before a write is repeated. The error is why it must not be.
func (h *hand) rest(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	passing := []error{datastore.ErrUnavailable, datastore.ErrFull, datastore.ErrConflict, datastore.ErrExists, datastore.ErrNotFound, context.DeadlineExceeded}
	if !slices.ContainsFunc(passing, func(one error) bool { return errors.Is(err, one) }) {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(again):
		return nil
	}
}

// note notes a write that is done, and the deletions before it, which have happened by its revision too.
func (h *hand) note(t *thing, stored api.Object) {
	revision, err := strconv.ParseUint(stored.GetResourceVersion(), 10, 64)
	if err != nil {
		return // another kind of datastore: judgement is milder
	}
	for _, d := range h.deleted {
		d.Revision = revision
		h.world.writes.Add(d)
	}
	h.deleted = nil
	if t.object != "" {
		h.world.writes.Add(history.Write{Revision: revision, Object: t.object, Mark: t.mark})
	}
}
