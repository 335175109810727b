package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Route is a route of a node, as iproute2 shows it.
type Route struct {
	Type     string   `json:"type"` // "" is unicast
	Dst      string   `json:"dst"`
	Gateway  string   `json:"gateway"`
	Dev      string   `json:"dev"`
	Protocol string   `json:"protocol"`
	Flags    []string `json:"flags"`
}

// way is where the route leads, as iproute2 writes it.
func (r Route) way() string {
	text := "dev " + r.Dev
	if r.Gateway != "" {
		text = "via " + r.Gateway + " " + text
	}
	if slices.Contains(r.Flags, "onlink") {
		text += " onlink"
	}
	return text
}

// Routes returns a node's routes inside a prefix.
func (l *Lab) Routes(ctx context.Context, node string, inside netip.Prefix) ([]Route, error) {
	out, err := l.Run(ctx, node, routeCommand(inside, "-json")...)
	if err != nil {
		return nil, err
	}
	var rs []Route
	if err := json.Unmarshal([]byte(out), &rs); err != nil {
		return nil, fmt.Errorf("read the routes of %s: %w", node, err)
	}
	return rs, nil
}

// routeCommand shows the routes of a node inside a prefix.
func routeCommand(inside netip.Prefix, flags ...string) []string {
	cmd := append([]string{"ip"}, flags...)
	if inside.Addr().Is6() {
		cmd = append(cmd, "-6")
	}
	return append(cmd, "route", "show", "root", inside.String())
}

// AwaitRoutes is AwaitPools with all pools of the topology in one mode.
func (l *Lab) AwaitRoutes(ctx context.Context, t Topology, mode Mode) error {
	if err := mode.check(); err != nil {
		return err
	}
	t.Pools = slices.Clone(t.Pools)
	for i := range t.Pools {
		t.Pools[i] = t.Pools[i].WithMode(mode)
	}
	return l.AwaitPools(ctx, t)
}

// AwaitPools returns when the cluster has converged: each node has the routes to the pods of other nodes that the modes of
// the topology's pools call for, and none changed between two looks. It looks at the nodes' kernels again and again until
// then, or until ctx ends; the error tells what was still missing.
func (l *Lab) AwaitPools(ctx context.Context, t Topology) error {
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	missing, before := "nothing was seen", ""
	for {
		began := time.Now()
		all, err := l.allRoutes(ctx, t, st)
		look := time.Since(began)
		switch {
		case err == nil:
			missing = missingRoutes(t, st, all)
			now := fmt.Sprint(all)
			if missing == "" && now == before {
				return nil
			}
			before = now
		case ctx.Err() == nil:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the routes did not come: %s: %w", cmp.Or(missing, "they keep changing"), context.Cause(ctx))
		case <-time.After(max(pollInterval, look)): // half of the time, at least, is for what is waited for
		}
	}
}

// allRoutes returns each node's routes inside the pools.
func (l *Lab) allRoutes(ctx context.Context, t Topology, st Status) (map[string][]Route, error) {
	all := map[string][]Route{}
	for _, n := range st.Nodes {
		for _, pool := range t.Pools {
			routes, err := l.Routes(ctx, n.Name, pool.CIDR)
			if err != nil {
				return nil, err
			}
			all[n.Name] = append(all[n.Name], routes...)
		}
	}
	return all, nil
}

// missingRoutes names the first route that a node should have and has not.
func missingRoutes(t Topology, st Status, all map[string][]Route) string {
	for _, pool := range t.Pools {
		want := Expect(t, st.Pods, pool.Mode())
		for _, n := range st.Nodes {
			for _, pod := range st.Pods {
				if line := missingRoute(n.Name, all[n.Name], pool, pod, want(n.Name, pod.ID)); line != "" {
					return line
				}
			}
		}
	}
	return ""
}

// missingRoute checks the route of one node to one pod. In direct mode a node also has routes to pods of other subnets,
// through the router; that they lead nowhere is the router's doing.
func missingRoute(node string, routes []Route, pool Pool, pod PodStatus, want Path) string {
	for _, a := range pod.Addresses {
		if !pool.CIDR.Contains(a) || want == PathLocal {
			continue
		}
		block, err := a.Prefix(pool.BlockSize)
		if err != nil {
			return err.Error()
		}
		device := tunnelDevice(want, a.Is6())
		found := slices.ContainsFunc(routes, func(r Route) bool {
			return r.Dst == block.String() && r.Gateway != "" && (r.Dev == device || device == "" && !isTunnel(r.Dev))
		})
		if !found {
			kind := PathDirect
			if device != "" {
				kind = want
			}
			return fmt.Sprintf("%s has no %s route to %s of %s", node, kind, block, pod.ID)
		}
	}
	return ""
}
