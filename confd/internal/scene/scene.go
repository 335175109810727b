// Package scene reads the inputs of confd's tests: a cluster as resources, and beside them what typha adds to a node's view.
package scene

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/confd/render"
)

// head is the first document of a file; resources follow.
type head struct {
	Node         string   `json:"node"`
	RouterID     string   `json:"routerID"`
	Blocks       []string `json:"blocks"` // prefix@node
	Originations []string `json:"originations"`
	Secrets      []secret `json:"secrets"`
	Pods         []pod    `json:"pods"` // that speak BGP
}

type pod struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Peers     []string     `json:"peers"`
}

type secret struct{ Name, Value string }

// Load reads a file.
func Load(path string) (render.Options, []view.Item, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return render.Options{}, nil, err
	}
	first, rest, _ := strings.Cut(string(body), "\n---\n")
	var h head
	if err := yaml.UnmarshalStrict([]byte(first), &h); err != nil {
		return render.Options{}, nil, fmt.Errorf("%s: first document: %w", path, err)
	}
	objects, err := api.Decode([]byte(rest))
	if err != nil {
		return render.Options{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	var items []view.Item
	for _, o := range objects {
		o.Default()
		items = append(items, view.Resource{Object: o})
	}
	for _, b := range h.Blocks {
		prefix, node, _ := strings.Cut(b, "@")
		items = append(items, view.Route{Dst: netip.MustParsePrefix(prefix), Type: view.RouteBlock, Node: node})
	}
	for _, o := range h.Originations {
		items = append(items, view.Origination{Prefix: netip.MustParsePrefix(o)})
	}
	for _, s := range h.Secrets {
		items = append(items, view.Secret{Name: s.Name, Value: []byte(s.Value)})
	}
	for _, p := range h.Pods {
		items = append(items, view.WorkloadEndpoint{
			ID:        view.EndpointID{Orchestrator: "k8s", Workload: "default/" + p.Name, Endpoint: "eth0"},
			Addresses: p.Addresses, Peering: &view.Peering{BGPPeers: p.Peers},
		})
	}
	return render.Options{Node: h.Node, RouterID: h.RouterID}, items, nil
}

// Config renders a file.
func Config(path string) (render.Config, error) {
	options, items, err := Load(path)
	if err != nil {
		return render.Config{}, err
	}
	s := render.NewState(options)
	s.Commit(view.Batch{Updates: items, InSync: true})
	return s.Render()
}
