package agent

import (
	"context"

	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// Pods makes and removes pods' interfaces with the link driver.
type Pods struct{ Links *link.Driver }

// Reach tells why a pod's network namespace cannot be entered.
func (p Pods) Reach(netns string) error { return link.Reach(netns) }

// Wire makes the pair of an endpoint and sets the pod's side up.
func (p Pods) Wire(ctx context.Context, e state.Endpoint, podInterface string) error {
	pod, err := podOf(e, podInterface)
	if err != nil {
		return err
	}
	return p.Links.Wire(ctx, pod)
}

// Unwire removes the pair; what is not there is no error.
func (p Pods) Unwire(_ context.Context, e state.Endpoint, _ string) error {
	return p.Links.Unwire(e.Interface)
}

// Check compares the pair with the endpoint.
func (p Pods) Check(ctx context.Context, e state.Endpoint, podInterface string) error {
	pod, err := podOf(e, podInterface)
	if err != nil {
		return err
	}
	return p.Links.Check(ctx, pod)
}

func podOf(e state.Endpoint, podInterface string) (link.Pod, error) {
	mac, err := desired.ParseMAC(e.MAC)
	return link.Pod{
		Netns: e.Netns, Interface: podInterface, Host: e.Interface, MTU: e.MTU, MAC: mac, Addresses: e.Addresses, Forwarding: e.Forwarding,
		Queues: e.Queues, Routes: e.Routes,
	}, err
}
