package ipamgc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/audit"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc/leak"
)

// batch is how many addresses are released in one go.
const batch = 10_000

// act does what was planned, as far as it goes: each part is tried whatever becomes of the others, and failed says that
// something is left to be done.
func (r *run) act(ctx context.Context, f facts, plan leak.Plan) (failed bool) {
	if r.options.KeepEndpoints {
		plan.Endpoints = nil
	}
	if len(plan.Ask)+len(plan.Endpoints)+len(plan.Lost)+len(plan.Nodes)+len(plan.Surplus) == 0 && !r.cooled(f) {
		return false
	}
	fresh := freshLook{r.store, map[string]*api.Node{}}
	try := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			failed = true
			r.log.Warn("cannot "+what+", trying again later", "error", err)
		}
	}
	off, err := fresh.off(ctx)
	try("learn whether to collect", err)
	if off != "" || err != nil {
		return failed
	}
	for node, question := range plan.Ask {
		try("ask node "+node, r.ask(ctx, node, question))
	}
	for _, ep := range plan.Endpoints {
		try("delete an endpoint of a node that is gone", r.deleteEndpoint(ctx, fresh, ep))
	}
	lost, err := r.confirm(ctx, f, fresh, plan.Lost)
	try("look at lost addresses once more", err)
	for part := range slices.Chunk(lost, batch) {
		try("release lost addresses", r.release(ctx, f, part))
	}
	for _, node := range plan.Nodes {
		try("release the blocks of node "+node, r.releaseNode(ctx, fresh, node))
	}
	for _, e := range plan.Surplus {
		try("give back an empty block", r.giveBack(ctx, e))
	}
	try("free addresses that have cooled down", r.collect(ctx, f))
	return failed
}

// ask puts a question to a node.
func (r *run) ask(ctx context.Context, name, question string) error {
	o, err := r.store.Get(ctx, api.Key{Kind: "Node", Name: name})
	if err != nil {
		return ignore(err, datastore.ErrNotFound)
	}
	node := o.(*api.Node)
	if node.Annotations == nil {
		node.Annotations = map[string]string{}
	}
	node.Annotations[api.AnnotationEndpointsAsked] = question
	r.log.Info("asking a node for its endpoints, since addresses of it are missing", "node", name)
	_, err = r.store.Update(ctx, node)
	return err
}

// freshLook reads from the datastore itself, nodes at most once.
type freshLook struct {
	store datastore.Client
	nodes map[string]*api.Node // nil: it is not registered
}

// node returns the node as it is now, nil if it is not registered.
func (l freshLook) node(ctx context.Context, name string) (*api.Node, error) {
	if n, known := l.nodes[name]; known {
		return n, nil
	}
	o, err := l.store.Get(ctx, api.Key{Kind: "Node", Name: name})
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		l.nodes[name] = nil
	case err != nil:
		return nil, fmt.Errorf("node %s: %w", name, err)
	default:
		l.nodes[name] = o.(*api.Node)
	}
	return l.nodes[name], nil
}

// off is whyOff as it is now. Kinds are watched apart from each other: that a datastore is open again may be known before
// what was turned off while it was locked.
func (l freshLook) off(ctx context.Context) (string, error) {
	config, err := get[*api.KubeControllersConfiguration](ctx, l.store, "KubeControllersConfiguration")
	if err != nil {
		return "", err
	}
	info, err := get[*api.ClusterInformation](ctx, l.store, "ClusterInformation")
	if err != nil {
		return "", err
	}
	return whyOff(config, info), nil
}

// get returns the object of a kind that has but one, nil if it is not stored.
func get[T api.Object](ctx context.Context, store datastore.Reader, kind string) (none T, _ error) {
	o, err := store.Get(ctx, api.Key{Kind: kind, Name: api.DefaultName})
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return none, nil
	case err != nil:
		return none, fmt.Errorf("%s: %w", kind, err)
	}
	return o.(T), nil
}

// endpoints returns the addresses of a node's endpoints as they are now.
func (l freshLook) endpoints(ctx context.Context, node string, into map[netip.Addr]bool) error {
	// Names of endpoints begin with the node's; those of other nodes may begin so too, which does no harm.
	list, err := l.store.List(ctx, "WorkloadEndpoint", datastore.ListOptions{NamePrefix: strings.ReplaceAll(node, "-", "--") + "-"})
	if err != nil {
		return fmt.Errorf("endpoints of node %s: %w", node, err)
	}
	for _, o := range list.Items {
		for _, a := range audit.EndpointAddrs(o.(*api.WorkloadEndpoint)) {
			into[a] = true
		}
	}
	return nil
}

// confirm judges addresses once more by what is stored at this moment. Of a handle that has an address which is alive
// after all, none is released.
func (r *run) confirm(ctx context.Context, f facts, fresh freshLook, lost []leak.Address) ([]leak.Address, error) {
	now := leak.Reported{Nodes: map[string]*api.Node{}, Endpoints: reported(f.Nodes, f.Endpoints)}
	looked := map[string]bool{}
	var errs []error
	for _, a := range lost {
		if looked[a.Node] {
			continue
		}
		looked[a.Node] = true
		node, err := fresh.node(ctx, a.Node)
		if err == nil && node != nil {
			now.Nodes[a.Node] = node
			err = fresh.endpoints(ctx, a.Node, now.Endpoints)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	still := func(a leak.Address) bool {
		life := now.Life(a.Allocation)
		registered := now.Nodes[a.Node] != nil
		return life == leak.Missing && f.Nodes[a.Node] != nil || life == leak.Gone && !registered && f.Nodes[a.Node] == nil
	}
	for _, a := range lost {
		if !still(a) {
			keep[a.Handle] = true
		}
	}
	return slices.DeleteFunc(lost, func(a leak.Address) bool { return !still(a) || a.Handle != "" && keep[a.Handle] }), nil
}

// release frees lost addresses, as they were seen.
func (r *run) release(ctx context.Context, f facts, lost []leak.Address) error {
	var requests []block.Release
	for _, a := range lost {
		r.tell("releasing an address that nobody has", "address", a.Addr, "node", a.Node, "was", a.Whom(), "handle", a.Handle)
		requests = append(requests, block.Release{Addr: a.Addr, Handle: a.Handle, Sequence: &a.Sequence})
	}
	if r.options.DryRun {
		return nil
	}
	_, err := r.alloc.Release(ctx, requests...)
	if err == nil {
		r.metrics.reclaimed(f, lost)
	}
	return err
}

// tell logs what is done; in a dry run what would be done, and that once.
func (r *run) tell(what string, args ...any) {
	if r.options.DryRun {
		what = "dry run: " + what
		said := fmt.Sprint(what, args)
		if r.told[said] {
			return
		}
		r.told[said] = true
	}
	r.log.Info(what, args...)
}

func (r *run) deleteEndpoint(ctx context.Context, fresh freshLook, ep *api.WorkloadEndpoint) error {
	if node, err := fresh.node(ctx, ep.Spec.Node); err != nil || node != nil {
		return err
	}
	r.tell("deleting an endpoint of a node that is gone", "endpoint", ep.Namespace+"/"+ep.Name, "node", ep.Spec.Node)
	if r.options.DryRun {
		return nil
	}
	_, err := r.store.Delete(ctx, api.Key{Kind: "WorkloadEndpoint", Namespace: ep.Namespace, Name: ep.Name}, datastore.Precondition{Revision: ep.ResourceVersion})
	return ignore(err, datastore.ErrNotFound)
}

func (r *run) releaseNode(ctx context.Context, fresh freshLook, name string) error {
	if node, err := fresh.node(ctx, name); err != nil || node != nil {
		return err
	}
	r.tell("releasing the blocks of a node that is gone", "node", name)
	if r.options.DryRun {
		return nil
	}
	// Blocks from which other nodes have borrowed stay, without an owner, until the last address is given back.
	return r.alloc.ReleaseNode(ctx, name, false)
}

func (r *run) giveBack(ctx context.Context, e leak.Empty) error {
	r.tell("giving back an empty block that its node does not need", "block", e.CIDR, "node", e.Node)
	if r.options.DryRun {
		return nil
	}
	return ignore(r.alloc.ReleaseAffinity(ctx, e.Node, e.CIDR, true), alloc.ErrNotEmpty)
}

// cooled tells whether addresses have cooled down in blocks that nobody touches, so that it should be stored. Release times are wall
// clock, and those who give addresses out mind them exactly; here it may be a little later.
func (r *run) cooled(f facts) bool {
	const late = 10 * time.Second
	return !r.options.DryRun && slices.ContainsFunc(f.Blocks, func(b block.Block) bool {
		for a := range b.All() {
			if a.Cooling() && time.Since(a.Released) > f.cooldown+late {
				return true
			}
		}
		return false
	})
}

// collect stores that addresses have cooled down.
func (r *run) collect(ctx context.Context, f facts) error {
	if !r.cooled(f) {
		return nil
	}
	_, err := r.alloc.Collect(ctx)
	return err
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}
