package compute

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// SecretRef names a value: a key of a Secret.
type SecretRef struct{ Name, Key string }

// secrets decide which nodes are told which passwords, and put them into their BGP views. A password that is missing is in
// no view; a session that wants one and does not find it there waits.
type secrets struct {
	out       *output
	namespace string

	nodes   map[string]*api.Node // as far as BGP goes
	configs map[string]*api.BGPConfiguration
	peers   map[string]*protected // those with a password

	values map[SecretRef]*secret // of all that are used

	dirty bool // who uses what is to be found anew
	moved map[SecretRef]struct{}
}

// protected is a BGPPeer with a password.
type protected struct {
	peer             *api.BGPPeer
	ref              SecretRef
	nodes, selection *selector.Selector // what selects its near and its far side; nil where nothing does
}

// secret is a value and who uses it.
type secret struct {
	known bool         // it has been looked up
	entry *views.Entry // nil while it is missing
	nodes map[string]struct{}
}

func newSecrets(out *output) *secrets {
	return &secrets{
		out: out, namespace: "kube-system",
		nodes: map[string]*api.Node{}, configs: map[string]*api.BGPConfiguration{}, peers: map[string]*protected{},
		values: map[SecretRef]*secret{}, moved: map[SecretRef]struct{}{},
	}
}

// Secrets returns the values that are used, in order. SetSecret is to be called with each, once it has been looked up and
// whenever it changes.
func (e *Engine) Secrets() []SecretRef {
	e.secrets.match()
	out := make([]SecretRef, 0, len(e.secrets.values))
	for ref := range e.secrets.values {
		out = append(out, ref)
	}
	slices.SortFunc(out, func(a, b SecretRef) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Key, b.Key))
	})
	return out
}

// SecretsKnown tells whether everything that Secrets returns has been looked up.
func (e *Engine) SecretsKnown() bool {
	e.secrets.match()
	for _, s := range e.secrets.values {
		if !s.known {
			return false
		}
	}
	return true
}

// SetSecret says what a value is; nil if there is none. One that is not used is not kept.
func (e *Engine) SetSecret(ref SecretRef, value []byte) {
	e.secrets.match()
	s := e.secrets.values[ref]
	if s == nil {
		return
	}
	s.known = true
	was := s.entry
	s.entry = nil
	if len(value) > 0 { // an empty one protects nothing
		s.entry = views.NewEntry(view.Secret{Name: e.secrets.name(ref), Value: value})
	}
	if was == nil && s.entry == nil || was != nil && s.entry != nil && was.Version == s.entry.Version {
		s.entry = was
		return
	}
	e.secrets.moved[ref] = struct{}{}
}

// name is how views name a value.
func (s *secrets) name(ref SecretRef) string { return s.namespace + "/" + ref.Name + "/" + ref.Key }

// refOf returns what a password points to, if it does.
func refOf(p *api.BGPPassword) (SecretRef, bool) {
	if p == nil || p.SecretKeyRef == nil || p.SecretKeyRef.Name == "" || p.SecretKeyRef.Key == "" {
		return SecretRef{}, false
	}
	return SecretRef{p.SecretKeyRef.Name, p.SecretKeyRef.Key}, true
}

func (s *secrets) setNode(name string, o *api.Node) {
	was := s.nodes[name]
	if o == nil {
		delete(s.nodes, name)
	} else {
		s.nodes[name] = o
	}
	if o == nil || was == nil || !maps.Equal(was.Labels, o.Labels) || !reflect.DeepEqual(was.Spec.BGP, o.Spec.BGP) {
		s.dirty = true
	}
}

func (s *secrets) setConfig(name string, o *api.BGPConfiguration) {
	if o == nil {
		delete(s.configs, name)
	} else {
		s.configs[name] = o
	}
	s.dirty = true
}

// setPeer takes in a peering, or with nil its end. Peerings with local workloads have no password whatever they say.
func (s *secrets) setPeer(name string, o *api.BGPPeer) {
	if _, had := s.peers[name]; had {
		delete(s.peers, name)
		s.dirty = true
	}
	if o == nil || o.Spec.LocalWorkloadSelector != "" {
		return
	}
	ref, ok := refOf(o.Spec.Password)
	if !ok {
		return
	}
	p := &protected{peer: o, ref: ref}
	for _, side := range []struct {
		text string
		to   **selector.Selector
	}{{o.Spec.NodeSelector, &p.nodes}, {o.Spec.PeerSelector, &p.selection}} {
		if side.text == "" {
			continue
		}
		sel, err := selector.Parse(side.text)
		if err != nil {
			return // it selects nothing, hence there is no session
		}
		*side.to = sel
	}
	s.peers[name] = p
	s.dirty = true
}

// match finds anew who uses what, if that may have changed. Passwords are few, and so are peerings that have one.
func (s *secrets) match() {
	if !s.dirty {
		return
	}
	s.dirty = false
	now := map[SecretRef]map[string]struct{}{}
	use := func(ref SecretRef, node string) {
		if now[ref] == nil {
			now[ref] = map[string]struct{}{}
		}
		now[ref][node] = struct{}{}
	}
	if ref, ok := s.meshPassword(); ok {
		for name, n := range s.nodes {
			if s.inMesh(n) {
				use(ref, name)
			}
		}
	}
	for _, p := range s.peers {
		near := map[string]struct{}{}
		for name, n := range s.nodes {
			if p.near(n) {
				near[name] = struct{}{}
				use(p.ref, name)
			}
		}
		if r := p.peer.Spec.ReversePeering; r != nil && *r == api.ReverseManual {
			continue
		}
		for name, n := range s.nodes {
			_, itself := near[name]
			if others := len(near) > 1 || len(near) == 1 && !itself; others && s.far(p, n) {
				use(p.ref, name)
			}
		}
	}
	for ref, nodes := range now {
		if s.values[ref] == nil {
			s.values[ref] = &secret{nodes: map[string]struct{}{}}
		}
		s.assign(s.values[ref], s.name(ref), nodes)
	}
	for ref, v := range s.values {
		if now[ref] == nil {
			s.assign(v, s.name(ref), nil)
			delete(s.values, ref)
		}
	}
}

// assign says who uses a value from now on.
func (s *secrets) assign(v *secret, name string, nodes map[string]struct{}) {
	for node := range v.nodes {
		if _, still := nodes[node]; !still && v.entry != nil {
			s.out.drop(bgpView(node), view.Secret{Name: name}.Key())
		}
	}
	for node := range nodes {
		if _, had := v.nodes[node]; !had && v.entry != nil {
			s.out.put(bgpView(node), v.entry)
		}
	}
	v.nodes = nodes
}

// flush tells nodes about values that are others.
func (s *secrets) flush() {
	s.match()
	for ref := range s.moved {
		v := s.values[ref]
		if v == nil {
			continue
		}
		for node := range v.nodes {
			if v.entry == nil {
				s.out.drop(bgpView(node), view.Secret{Name: s.name(ref)}.Key())
			} else {
				s.out.put(bgpView(node), v.entry)
			}
		}
	}
	clear(s.moved)
}

// meshPassword is what protects the mesh, if there is a mesh and anything does.
func (s *secrets) meshPassword() (SecretRef, bool) {
	c := s.configs[api.DefaultName]
	if c == nil || !c.Spec.MeshEnabled() {
		return SecretRef{}, false
	}
	return refOf(c.Spec.NodeMeshPassword)
}

// inMesh tells whether a node is one of the mesh: reflectors are not, unless they were elected to take the mesh's place.
func (s *secrets) inMesh(n *api.Node) bool {
	if n.Spec.BGP == nil {
		return false
	}
	c := s.configs[api.DefaultName]
	if r := c.Spec.RouteReflectors; r != nil && r.Mode == api.ReflectorsAuto || c.Status != nil && c.Status.Reflection != nil {
		return true
	}
	id, err := netip.ParseAddr(n.Spec.BGP.RouteReflectorClusterID)
	return err != nil || !id.Is4()
}

// near tells whether a node is one of those that have the peering.
func (p *protected) near(n *api.Node) bool {
	switch spec := &p.peer.Spec; {
	case n.Spec.BGP == nil:
		return false
	case spec.Node != "":
		return n.Name == spec.Node
	case p.nodes != nil:
		return p.nodes.Matches(n.Labels)
	}
	return true
}

// far tells whether a node is one that the peering is with, so that it peers back.
func (s *secrets) far(p *protected, n *api.Node) bool {
	if n.Spec.BGP == nil {
		return false
	}
	if p.selection != nil {
		return p.selection.Matches(n.Labels)
	}
	peer, err := api.ParsePeerIP(p.peer.Spec.PeerIP)
	if err != nil {
		return false
	}
	if a := peer.Addr(); a != address(n.Spec.BGP.IPv4Address) && a != address(n.Spec.BGP.IPv6Address) {
		return false
	}
	return s.as(n) == cmp.Or(p.peer.Spec.ASNumber, s.as(nil)) && (peer.Port() == 0 || peer.Port() == s.port(n.Name))
}

// as is a node's AS; without a node the cluster's.
func (s *secrets) as(n *api.Node) api.ASNumber {
	var own, all api.ASNumber // 0 is none
	if n != nil && n.Spec.BGP.ASNumber != nil {
		own = *n.Spec.BGP.ASNumber
	}
	if c := s.configs[api.DefaultName]; c != nil && c.Spec.ASNumber != nil {
		all = *c.Spec.ASNumber
	}
	return cmp.Or(own, all, api.DefaultASNumber)
}

// port is where a node listens.
func (s *secrets) port(node string) uint16 {
	var own, all uint16
	if c := s.configs["node."+node]; c != nil {
		own = c.Spec.ListenPort
	}
	if c := s.configs[api.DefaultName]; c != nil {
		all = c.Spec.ListenPort
	}
	return cmp.Or(own, all, api.DefaultBGPPort)
}
