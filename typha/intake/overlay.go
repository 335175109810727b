package intake

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
)

// overlay holds endpoints that felix has reported and the datastore does not show yet. Policies must apply to a pod
// before the write of its endpoint has gone through, and also while the datastore cannot be written at all. It belongs
// to the loop.
type overlay struct {
	held map[api.Key]*held
}

// held is one endpoint that counts before the datastore's.
type held struct {
	node     string
	reported *cache.Endpoint
	stored   cache.Object // what the datastore says meanwhile; nil if nothing
}

// report is all endpoints of a node.
type report struct {
	node      string
	endpoints map[api.Key]*api.WorkloadEndpoint
}

func newOverlay() *overlay { return &overlay{held: map[api.Key]*held{}} }

// Report takes the full set of endpoints that are on a node, in the form in which they are going to be written. Those
// that the datastore does not show yet count as if it did, until it does or a later report leaves them out. Endpoints
// of other nodes and invalid ones are left out and logged. It returns when the report is under way, or ctx ends. Nobody may change
// an endpoint any more: the very same one is not looked at again in the next report.
func (in *Intake) Report(ctx context.Context, node string, endpoints []*api.WorkloadEndpoint) error {
	in.mu.Lock()
	before := in.taken[node]
	in.mu.Unlock()
	r := &report{node: node, endpoints: map[api.Key]*api.WorkloadEndpoint{}}
	taken := make(map[*api.WorkloadEndpoint]struct{}, len(endpoints))
	for _, ep := range endpoints {
		key := api.KeyOf(ep)
		err := errForeign
		if _, known := before[ep]; known {
			err = nil
		} else if ep.Spec.Node == node {
			full := ep.DeepCopy()
			full.Default()
			err = full.Validate()
		}
		if err != nil {
			in.log.Warn("reported endpoint is left out", "node", node, "object", key.String(), "error", err)
			continue
		}
		r.endpoints[key], taken[ep] = ep, struct{}{}
	}
	in.mu.Lock()
	in.taken[node] = taken
	in.mu.Unlock()
	return in.send(ctx, message{report: r})
}

// stored notes what the datastore says about an object, and tells whether that counts.
func (v *overlay) stored(key api.Key, o cache.Object) bool {
	h := v.held[key]
	if h == nil {
		return true
	}
	h.stored = o
	if !shows(o, h.reported) {
		return false
	}
	delete(v.held, key)
	return true
}

// report takes in a node's report. get and set read and write what counts as an object's state.
func (v *overlay) report(node string, endpoints map[api.Key]*cache.Endpoint, get func(api.Key) cache.Object, set func(api.Key, cache.Object)) {
	for key, h := range v.held {
		if _, still := endpoints[key]; h.node == node && !still {
			delete(v.held, key)
			set(key, h.stored)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(endpoints), compareKeys) {
		reported := endpoints[key]
		h := v.held[key]
		if h == nil {
			h = &held{stored: get(key)}
		}
		if shows(h.stored, reported) {
			if v.held[key] != nil {
				delete(v.held, key)
				set(key, h.stored)
			}
			continue
		}
		h.node, h.reported = node, reported
		v.held[key] = h
		set(key, reported)
	}
}

// shows tells whether what the datastore says is what was reported, as far as felix knows it. Labels and profiles may
// differ: where there is a pod they come from there.
func shows(stored cache.Object, reported *cache.Endpoint) bool {
	a, ok := stored.(*cache.Endpoint)
	b := reported
	return ok && a.Node == b.Node && a.ContainerID == b.ContainerID && a.Interface == b.Interface &&
		(a.MAC == b.MAC || a.MAC == "") && equalSets(a.Nets, b.Nets)
}

func equalSets(a, b []netip.Prefix) bool {
	return slices.Equal(slices.SortedFunc(slices.Values(a), netip.Prefix.Compare), slices.SortedFunc(slices.Values(b), netip.Prefix.Compare))
}

func compareKeys(a, b api.Key) int {
	return strings.Compare(a.Kind+"/"+a.Namespace+"/"+a.Name, b.Kind+"/"+b.Namespace+"/"+b.Name)
}
