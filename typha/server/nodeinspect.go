package server

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api"
	birdclient "github.com/muslin-net/muslin/bird/client"
	felixclient "github.com/muslin-net/muslin/felix/client"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

const (
	// inspectPatience is how long a node has to answer each question.
	inspectPatience = 20 * time.Second
	// mostRoutes bounds the routes of a family in a report: an object must stay small enough to be stored.
	mostRoutes = 2000
)

// The words of CalicoNodeStatus (spec 3.2).
const (
	ready         = "Ready"
	notReady      = "NotReady"
	noGateway     = "N/A"
	chosen        = "FIB"
	known         = "RIB"
	sourceKernel  = "Kernel"
	sourceStatic  = "Static"
	sourceMesh    = "NodeMesh"
	sourceBGPPeer = "BGPPeer"
)

// inspect asks a node for what an object wants to know. A node that does not answer is not ready; that is no error.
func (r *nodeReports) inspect(ctx context.Context, object *api.CalicoNodeStatus) api.CalicoNodeStatusStatus {
	var out api.CalicoNodeStatusStatus
	wants := func(c api.StatusClass) bool { return slices.Contains(object.Spec.Classes, c) }
	peers, err := r.peers(ctx, object.Spec.Node)
	if err != nil {
		r.log.Debug("a node's bird does not answer", "node", object.Spec.Node, "error", err)
	}
	if wants(api.StatusAgent) {
		out.Agent.BIRDV4 = daemonStatus(peers, err)
		out.Agent.BIRDV6 = out.Agent.BIRDV4 // one process for both families
	}
	if wants(api.StatusBGP) {
		out.BGP = bgpStatus(peers)
	}
	if wants(api.StatusRoutes) {
		out.Routes = r.routes(ctx, object.Spec.Node, peers)
	}
	return out
}

func (r *nodeReports) question(ctx context.Context, node string, method typhav1.QueryMethod, body []byte, take func([]byte) error) error {
	return r.ask(ctx, &typhav1.QueryRequest{
		Node: node, Method: method, Request: body, Timeout: durationpb.New(inspectPatience),
	}, take)
}

func (r *nodeReports) peers(ctx context.Context, node string) (out birdclient.Status, err error) {
	err = r.question(ctx, node, typhav1.QueryMethod_QUERY_METHOD_BIRD_PEERS, birdclient.PeersQuestion(""), func(body []byte) (err error) {
		out, err = birdclient.ReadPeers(body)
		return err
	})
	return out, err
}

func daemonStatus(s birdclient.Status, failed error) api.BGPDaemonStatus {
	if failed != nil || s.Generation == 0 {
		return api.BGPDaemonStatus{State: notReady}
	}
	return api.BGPDaemonStatus{
		State: ready, Version: s.Software, RouterID: s.RouterID.String(), LastBootTime: clock(s.Started),
		LastReconfigurationTime: clock(s.Configured),
	}
}

// clock is a time as BIRD prints it.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateTime)
}

func bgpStatus(s birdclient.Status) api.BGPStatus {
	var out api.BGPStatus
	for _, p := range s.Peers {
		kind, listed := map[birdclient.PeerType]string{
			birdclient.Mesh: "NodeMesh", birdclient.NodeSpecific: "NodePeer", birdclient.Global: "GlobalPeer",
		}[p.Type]
		if !listed || p.ShadowedBy != "" {
			continue
		}
		one := api.BGPPeerStatus{PeerIP: p.Address.String(), Type: kind, State: p.State.String(), Since: clock(p.Since)}
		if p.State == birdclient.Down || p.State == birdclient.StateUnknown {
			one.State = "Close"
		}
		list, up, down := &out.PeersV4, &out.NumberEstablishedV4, &out.NumberNotEstablishedV4
		if p.Address.Is6() {
			list, up, down = &out.PeersV6, &out.NumberEstablishedV6, &out.NumberNotEstablishedV6
		}
		*list = append(*list, one)
		if p.State == birdclient.Established {
			*up++
		} else {
			*down++
		}
	}
	return out
}

// routes lists what is in the kernel of a node, by felix, and what bird knows beside it.
func (r *nodeReports) routes(ctx context.Context, node string, peers birdclient.Status) api.BGPRoutesStatus {
	types := map[netip.Addr]birdclient.PeerType{}
	for _, p := range peers.Peers {
		if p.ShadowedBy == "" {
			types[p.Address] = p.Type
		}
	}
	learned := learnedPaths{sources: map[learnedKey]api.BGPRouteSourceStatus{}, best: map[netip.Prefix]netip.Addr{}}
	var table []birdclient.Route
	err := r.question(ctx, node, typhav1.QueryMethod_QUERY_METHOD_BIRD_SHOW,
		birdclient.ShowQuestion(birdclient.Table, "", netip.Prefix{}), func(body []byte) error {
			return birdclient.ReadRoutes(body, func(b birdclient.Route) {
				if !b.Path.PeerAddress.IsValid() {
					return
				}
				table = append(table, b)
				if key := (learnedKey{b.Prefix, b.Path.NextHop}); b.Best || learned.sources[key].SourceType == "" {
					learned.sources[key] = sourceOf(b, types)
				}
				if b.Best {
					learned.best[b.Prefix] = b.Path.NextHop
				}
			})
		})
	if err != nil {
		r.log.Debug("a node's bird does not list its routes", "node", node, "error", err)
	}
	var list []routeStatus
	err = r.question(ctx, node, typhav1.QueryMethod_QUERY_METHOD_FELIX_DUMP, felixclient.DumpQuestion([]string{"route"}, false), func(body []byte) error {
		entries, err := felixclient.ReadDump(body)
		for _, e := range entries {
			list = append(list, kernelRoutes(e.Actual, learned)...)
		}
		return err
	})
	if err != nil {
		r.log.Debug("a node's felix does not list its routes", "node", node, "error", err)
	}
	used := map[learnedKey]bool{}
	for _, one := range list {
		used[one.key] = true
	}
	for _, b := range table {
		if key := (learnedKey{b.Prefix, b.Path.NextHop}); !used[key] {
			list = append(list, routeStatus{key, api.BGPRouteStatus{
				Type: known, Destination: b.Prefix.String(), Gateway: b.Path.NextHop.String(), LearnedFrom: sourceOf(b, types),
			}})
		}
	}
	return r.routesStatus(node, list)
}

// learnedKey is a path as the kernel has it.
type learnedKey struct {
	prefix  netip.Prefix
	nextHop netip.Addr
}

// learnedPaths is what bird has of its peers.
type learnedPaths struct {
	sources map[learnedKey]api.BGPRouteSourceStatus
	best    map[netip.Prefix]netip.Addr // next hops
}

// behind is the path that a route of the kernel stands for. The gateway may be another than the next hop: a router on the way
// to it.
func (l learnedPaths) behind(prefix netip.Prefix, gateway netip.Addr) learnedKey {
	key := learnedKey{prefix, gateway}
	if _, ok := l.sources[key]; ok || !gateway.IsValid() {
		return key
	}
	if hop, ok := l.best[prefix]; ok {
		key.nextHop = hop
	}
	return key
}

type routeStatus struct {
	key learnedKey
	api.BGPRouteStatus
}

func sourceOf(r birdclient.Route, types map[netip.Addr]birdclient.PeerType) api.BGPRouteSourceStatus {
	out := api.BGPRouteSourceStatus{SourceType: sourceBGPPeer, PeerIP: r.Path.PeerAddress.String()}
	if types[r.Path.PeerAddress] == birdclient.Mesh {
		out.SourceType = sourceMesh
	}
	return out
}

// kernelRoutes reads a route as felix shows it, in the form of ip-route(8): one for each next hop. Those of other tables than
// the main one, and text that is no route, are none.
func kernelRoutes(text string, learned learnedPaths) []routeStatus {
	words := strings.Fields(text)
	var kind string
	if len(words) > 0 && !strings.Contains(words[0], "/") {
		kind, words = words[0], words[1:]
	}
	if len(words) == 0 {
		return nil
	}
	prefix, err := netip.ParsePrefix(words[0])
	if err != nil || slices.Contains(words, "table") {
		return nil
	}
	one := func(gateway netip.Addr, link string) routeStatus {
		out := routeStatus{learned.behind(prefix, gateway), api.BGPRouteStatus{
			Type: chosen, Destination: prefix.String(), Gateway: noGateway, Interface: link,
			LearnedFrom: api.BGPRouteSourceStatus{SourceType: sourceKernel},
		}}
		if gateway.IsValid() {
			out.Gateway = gateway.String()
		}
		if from, ok := learned.sources[out.key]; ok {
			out.LearnedFrom = from
		}
		return out
	}
	if kind != "" {
		out := one(netip.Addr{}, kind)
		out.LearnedFrom.SourceType = sourceStatic
		return []routeStatus{out}
	}
	var list []routeStatus
	var gateway netip.Addr
	for i := 1; i+1 < len(words); i++ {
		switch words[i] {
		case "via":
			gateway, _ = netip.ParseAddr(words[i+1])
		case "dev":
			list = append(list, one(gateway, words[i+1]))
			gateway = netip.Addr{}
		}
	}
	return list
}

// routesStatus sorts routes by family and destination, those in the kernel first, and leaves out what is too much.
func (r *nodeReports) routesStatus(node string, list []routeStatus) (out api.BGPRoutesStatus) {
	slices.SortStableFunc(list, func(a, b routeStatus) int {
		if a.Type != b.Type {
			return strings.Compare(a.Type, b.Type)
		}
		if c := a.key.prefix.Compare(b.key.prefix); c != 0 {
			return c
		}
		return a.key.nextHop.Compare(b.key.nextHop)
	})
	for _, one := range list {
		family := &out.RoutesV4
		if one.key.prefix.Addr().Is6() {
			family = &out.RoutesV6
		}
		if len(*family) < mostRoutes {
			*family = append(*family, one.BGPRouteStatus)
		}
	}
	if kept := len(out.RoutesV4) + len(out.RoutesV6); kept < len(list) {
		r.log.Warn("a node's status lists some of its routes only; calicoctl bgp routes has all", "node", node, "routes", len(list), "listed", kept)
	}
	return out
}
