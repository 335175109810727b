package compute

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
)

// pods joins what two sources say of one endpoint: that it is there, with which addresses, and what pod it is. The pod says what
// its labels, profiles, ports and limits are, whatever is stored or was reported; a pod without an endpoint is an endpoint that is
// about to be made.
type pods struct {
	keys  map[api.Key]api.Key // of endpoints, by the pod's key
	asked map[string]askedFor // by namespaces that ask for something
}

// askedFor is what a namespace asks for its pods, and what of it makes no sense.
type askedFor struct {
	annotation.Request
	wrong string
}

func (a askedFor) equal(b askedFor) bool {
	return a.wrong == b.wrong && slices.Equal(a.IPv4Pools, b.IPv4Pools) && slices.Equal(a.IPv6Pools, b.IPv6Pools)
}

func newPods() *pods {
	return &pods{keys: map[api.Key]api.Key{}, asked: map[string]askedFor{}}
}

// setWorkload takes in an endpoint, or with nil its end.
func (e *Engine) setWorkload(key api.Key, o *cache.Endpoint) {
	_, pod := e.joined(key)
	e.join(key, o, pod)
}

// setPod takes in a pod, or with nil its end.
func (e *Engine) setPod(key api.Key, pod *cache.Endpoint) {
	was, known := e.pods.keys[key]
	var now api.Key
	if pod != nil {
		now = api.Key{Kind: "WorkloadEndpoint", Namespace: pod.Namespace, Name: pod.Name}
	}
	if known && was != now {
		delete(e.pods.keys, key)
		o, _ := e.joined(was)
		e.join(was, o, nil)
	}
	if pod != nil {
		e.pods.keys[key] = now
		o, _ := e.joined(now)
		e.join(now, o, pod)
	}
}

// joined are what was joined: an endpoint as it is stored or reported, and as its pod says.
func (e *Engine) joined(key api.Key) (o, pod *cache.Endpoint) {
	if s, _ := e.subjects.Get(key); s != nil && s.endpoint != nil {
		return s.endpoint.workload, s.endpoint.pod
	}
	return nil, nil
}

// join has an endpoint be what its sources say together.
func (e *Engine) join(key api.Key, o, pod *cache.Endpoint) {
	if o == nil && pod == nil {
		e.setSubject(key, nil)
		return
	}
	e.setSubject(key, workloadSubject(o, pod))
}

// setNamespace takes in what a namespace asks for its pods.
func (e *Engine) setNamespace(name string, o *api.Profile) {
	var now askedFor
	if o != nil {
		var err error
		if now.Request, err = annotation.Namespace(o.Annotations); err != nil {
			now = askedFor{wrong: "namespace " + name + ": " + err.Error()}
		}
	}
	if e.pods.asked[name].equal(now) {
		return
	}
	if now.equal(askedFor{}) {
		delete(e.pods.asked, name)
	} else {
		e.pods.asked[name] = now
	}
	for _, key := range e.pods.keys {
		if key.Namespace == name {
			s, _ := e.subjects.Get(key)
			e.touch(s)
		}
	}
}

// request is what a pod asks for; nil if it asks for nothing.
func (e *Engine) request(pod *cache.Endpoint) *view.AddressRequest {
	r, err := annotation.Pod(pod.Annotations)
	if err != nil {
		return &view.AddressRequest{Wrong: err.Error()}
	}
	namespace := e.pods.asked[pod.Namespace]
	if namespace.wrong != "" {
		return &view.AddressRequest{Wrong: namespace.wrong}
	}
	r = r.Within(namespace.Request)
	out := view.AddressRequest{
		Pools4: r.IPv4Pools, Pools6: r.IPv6Pools, Fixed: r.Addresses, Unmanaged: r.Unmanaged, Floating: r.Floating, MAC: r.MAC,
	}
	for _, family := range r.Families {
		out.Families = append(out.Families, map[string]int{"IPv4": 4, "IPv6": 6}[family])
	}
	if len(out.Pools4)+len(out.Pools6)+len(out.Families)+len(out.Fixed)+len(out.Unmanaged)+len(out.Floating) == 0 && out.MAC == "" {
		return nil
	}
	return &out
}

// PodUID is the uid by which kubelet knows a pod that was taken in. The object of a pod that kubelet has from a file has another.
func PodUID(pod *cache.Endpoint) string {
	if uid := pod.Annotations[kubernetes.AnnotationMirror]; uid != "" {
		return uid
	}
	return string(kubernetes.ReversedUID(types.UID(pod.UID)))
}

// PodAnnotations are those of a pod's annotations that PodUID and the computation read.
func PodAnnotations(all map[string]string) map[string]string {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(key, _ string) bool { return key != kubernetes.AnnotationMirror && !annotation.Asks(key) })
	if len(out) == 0 {
		return nil
	}
	return out
}
