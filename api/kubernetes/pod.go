package kubernetes

import (
	"crypto/sha1" //nolint:gosec // a name that users know is derived with it; nothing is protected by it
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/annotation"
)

// Annotations of pods.
const (
	cniDomain      = "cni.projectcalico.org/"
	podIP          = cniDomain + "podIP"
	podIPs         = cniDomain + "podIPs"
	podContainerID = cniDomain + "containerID"
	podDSCP        = "qos.projectcalico.org/dscp"
	podAWS         = "vpc.amazonaws.com/pod-ips"
)

// Labels that each endpoint of a pod has beside the pod's.
const (
	labelNamespace    = "projectcalico.org/namespace"
	labelOrchestrator = "projectcalico.org/orchestrator"
	labelAccount      = "projectcalico.org/serviceaccount"
)

const (
	endpointInterface = "eth0"
	hostPrefix        = "cali"
	maxLabelValue     = 63
)

// Endpoint is the endpoint of a pod (spec §1.10): nil if it has none, since it uses its node's network or is on no node yet. One
// that is not wired yet, or has finished, has no addresses. The error says which annotations make no sense; they are ignored.
//
// Labels of the pod with which its owner could pretend to labels of a namespace or service account are left out.
func Endpoint(p *corev1.Pod) (*api.WorkloadEndpoint, error) {
	if p.Spec.NodeName == "" || p.Spec.HostNetwork {
		return nil, nil
	}
	e := &api.WorkloadEndpoint{
		TypeMeta: typeMeta("WorkloadEndpoint"),
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, UID: ReversedUID(p.UID), ResourceVersion: p.ResourceVersion,
			CreationTimestamp: p.CreationTimestamp, GenerateName: p.GenerateName, Labels: labelsOf(p),
		},
		Spec: api.WorkloadEndpointSpec{
			Orchestrator: api.OrchestratorKubernetes, Node: p.Spec.NodeName, Pod: p.Name, Endpoint: endpointInterface,
			ContainerID: p.Annotations[podContainerID], ServiceAccountName: p.Spec.ServiceAccountName,
			InterfaceName: HostInterface(p.Namespace, p.Name), Ports: portsOf(p),
			Profiles: []string{namespacePrefix + p.Namespace},
		},
	}
	if a := p.Spec.ServiceAccountName; a != "" {
		e.Spec.Profiles = append(e.Spec.Profiles, accountPrefix+p.Namespace+"."+a)
	}
	var wrong []error
	if !finished(p) {
		var err error
		e.Spec.IPNetworks, err = addressesOfPod(p)
		wrong = append(wrong, err)
	}
	wrong = append(wrong, readRequest(e, p.Annotations))
	var err error
	if e.Name, err = api.WorkloadEndpointName(e.Spec); err != nil {
		return nil, nil // no node and no pod has such a name
	}
	return e, errors.Join(wrong...)
}

// HostInterface is the interface of a pod on the side of its node.
func HostInterface(namespace, pod string) string {
	sum := sha1.Sum([]byte(namespace + "." + pod)) //nolint:gosec // see above
	return hostPrefix + hex.EncodeToString(sum[:])[:11]
}

// PodOf is the pod of the endpoint with a key.
func PodOf(key api.Key) (pod string, err error) {
	_, orchestrator, pod, endpoint, err := api.ParseWorkloadEndpointName(key.Name)
	if err == nil && (orchestrator != api.OrchestratorKubernetes || endpoint != endpointInterface) {
		err = fmt.Errorf("%q is no endpoint of a pod; in Kubernetes there are only those, whose names are <node>-k8s-<pod>-eth0 with dashes in node and pod doubled", key.Name)
	}
	return pod, err
}

func labelsOf(p *corev1.Pod) map[string]string {
	labels := maps.Clone(p.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.DeleteFunc(labels, func(k, _ string) bool {
		return strings.HasPrefix(k, namespaceLabelPrefix) || strings.HasPrefix(k, accountLabelPrefix) || k == labelAccount
	})
	labels[labelNamespace], labels[labelOrchestrator] = p.Namespace, api.OrchestratorKubernetes
	if a := p.Spec.ServiceAccountName; a != "" && len(a) < maxLabelValue {
		labels[labelAccount] = a
	}
	return labels
}

// finished tells whether a pod has no use for its addresses any more: it has ended, or is being deleted and unwired already. One
// that is being deleted and still wired keeps them to its end.
func finished(p *corev1.Pod) bool {
	switch p.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, "Completed":
		return true
	}
	if p.DeletionTimestamp == nil {
		return false
	}
	for _, key := range []string{podIP, podAWS} {
		if text, ok := p.Annotations[key]; ok && text == "" {
			return true
		}
	}
	return false
}

// addressesOfPod are the addresses of a pod, each as a network of its own: as kubelet says or, before it does, as was noted when
// the pod was wired.
func addressesOfPod(p *corev1.Pod) ([]string, error) {
	var texts []string
	for _, a := range p.Status.PodIPs {
		texts = append(texts, a.IP)
	}
	for _, more := range []string{p.Status.PodIP, p.Annotations[podIPs], p.Annotations[podIP], p.Annotations[podAWS]} {
		if len(texts) == 0 && more != "" {
			texts = strings.Split(more, ",")
		}
	}
	var out []string
	for _, text := range texts {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if n, netErr := netip.ParsePrefix(strings.TrimSpace(text)); err != nil && netErr == nil && n.IsSingleIP() {
			a, err = n.Addr(), nil
		}
		if err != nil {
			return nil, fmt.Errorf("address %q of the pod is none", text)
		}
		if net := netip.PrefixFrom(a, a.BitLen()).String(); !slices.Contains(out, net) {
			out = append(out, net)
		}
	}
	return out, nil
}

// portsOf are the ports that have names, for policies, or are forwarded from the node.
func portsOf(p *corev1.Pod) (ports []api.WorkloadEndpointPort) {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			protocol := api.Protocol(port.Protocol)
			if protocol == "" {
				protocol = api.ProtocolTCP
			}
			switch protocol {
			case api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP:
			default:
				continue
			}
			if (port.Name == "" && port.HostPort == 0) || port.ContainerPort < 1 || port.ContainerPort > math.MaxUint16 {
				continue
			}
			ports = append(ports, api.WorkloadEndpointPort{
				Name: port.Name, Protocol: protocol, Port: uint16(port.ContainerPort), HostPort: uint16(port.HostPort), HostIP: port.HostIP,
			})
		}
	}
	return ports
}

// NATs have floating addresses lead to an endpoint's own of the same family.
func NATs(own, floating []netip.Addr) (out []api.IPNAT) {
	for _, external := range floating {
		for _, internal := range own {
			if internal.Is4() == external.Is4() {
				out = append(out, api.IPNAT{InternalIP: internal.String(), ExternalIP: external.String()})
			}
		}
	}
	return out
}

// readRequest reads what a pod asks of its network.
func readRequest(e *api.WorkloadEndpoint, given map[string]string) error {
	r, err := annotation.Pod(given)
	var own []netip.Addr
	for _, text := range e.Spec.IPNetworks {
		if n, parseErr := netip.ParsePrefix(text); parseErr == nil {
			own = append(own, n.Addr())
		}
	}
	e.Spec.IPNATs = NATs(own, r.Floating)
	for _, source := range r.AllowedSources {
		e.Spec.AllowSpoofedSourcePrefixes = append(e.Spec.AllowSpoofedSourcePrefixes, source.String())
	}
	limit := func(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
	in, out := r.Limits.Ingress, r.Limits.Egress
	q := api.QoSControls{
		IngressBandwidth: limit(in.Bandwidth), IngressBurst: limit(in.Burst), IngressPeakrate: limit(in.Peakrate), IngressMinburst: limit(in.Minburst),
		IngressPacketRate: limit(in.PacketRate), IngressPacketBurst: limit(in.PacketBurst), IngressMaxConnections: limit(in.MaxConnections),
		EgressBandwidth: limit(out.Bandwidth), EgressBurst: limit(out.Burst), EgressPeakrate: limit(out.Peakrate), EgressMinburst: limit(out.Minburst),
		EgressPacketRate: limit(out.PacketRate), EgressPacketBurst: limit(out.PacketBurst), EgressMaxConnections: limit(out.MaxConnections),
	}
	if text := given[podDSCP]; text != "" {
		if d := api.DSCP(text); valid(d) {
			q.DSCP = &d
		} else {
			err = errors.Join(err, fmt.Errorf("annotation %s: %q is no DSCP; write 0 to 63, or a name such as EF, AF11 or CS3", podDSCP, text))
		}
	}
	if q != (api.QoSControls{}) {
		e.Spec.QoSControls = &q
	}
	return err
}

func valid(d api.DSCP) bool {
	_, ok := d.Number()
	return ok
}

// EndpointAnnotations are the annotations that note on its pod how an endpoint is wired. If the endpoint is nil it no longer is;
// what container it was stays.
func EndpointAnnotations(e *api.WorkloadEndpoint) map[string]string {
	if e == nil {
		return map[string]string{podIP: "", podIPs: ""}
	}
	first := ""
	if len(e.Spec.IPNetworks) > 0 {
		first = e.Spec.IPNetworks[0]
	}
	return map[string]string{podIP: first, podIPs: strings.Join(e.Spec.IPNetworks, ","), podContainerID: e.Spec.ContainerID}
}

// IsWired tells whether it is noted on a pod how its endpoint is wired.
func IsWired(p *corev1.Pod) bool { return p.Annotations[podIP] != "" }
