package kube

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Of a pod only what counts is kept, so that the many changes of its status are none to typha.
func TestWhatIsKeptOfAPod(t *testing.T) {
	now := metav1.Now()
	pod := func(change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web", "pcns.team": "forged"},
			Annotations: map[string]string{"cni.projectcalico.org/ipv4pools": `["gold"]`, "cni.projectcalico.org/containerID": "c1", "other": "x"},
		}}
		p.Spec.NodeName = "n1"
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
		for _, c := range change {
			c(p)
		}
		return p
	}
	bare := slimPod(pod(), false)
	require.Empty(t, bare.Spec.IPNetworks)
	require.Empty(t, bare.Spec.ContainerID)
	require.Equal(t, map[string]string{"cni.projectcalico.org/ipv4pools": `["gold"]`}, bare.Annotations)
	require.Equal(t, "web", bare.Labels["app"])
	require.NotContains(t, bare.Labels, "pcns.team", "labels of namespaces are not the pod's to give")
	require.Equal(t, bare, slimPod(pod(func(p *corev1.Pod) { p.Status.PodIPs, p.Status.Phase = nil, corev1.PodPending }), false))

	wired := slimPod(pod(), true)
	require.Equal(t, []string{"10.0.0.1/32"}, wired.Spec.IPNetworks)
	require.Equal(t, "c1", wired.Spec.ContainerID)

	for name, ended := range map[string]func(*corev1.Pod){
		"on the node's network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"on no node":            func(p *corev1.Pod) { p.Spec.NodeName = "" },
		"done":                  func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"evicted":               func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"unwired and going": func(p *corev1.Pod) {
			p.DeletionTimestamp, p.Annotations["cni.projectcalico.org/podIP"] = &now, ""
		},
	} {
		require.Nil(t, slimPod(pod(ended), true), name)
	}
	require.NotNil(t, slimPod(pod(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), true), "its connections end in peace")
}

func TestReplicasOfSeveralSlices(t *testing.T) {
	no := false
	slice := func(endpoints ...discoveryv1.Endpoint) Addresses {
		return *slimReplicas(&discoveryv1.EndpointSlice{Endpoints: endpoints})
	}
	got := union(map[string]Addresses{
		"a": slice(discoveryv1.Endpoint{Addresses: []string{"10.0.0.2"}}, discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}}),
		"b": slice(discoveryv1.Endpoint{Addresses: []string{"10.0.0.2"}}, discoveryv1.Endpoint{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}}),
	})
	a := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	require.Equal(t, Addresses{All: []netip.Addr{a("10.0.0.1"), a("10.0.0.2"), a("10.0.0.3")}, Ready: []netip.Addr{a("10.0.0.1"), a("10.0.0.2")}}, got)
}
