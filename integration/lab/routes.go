package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Route is a route of a node, as iproute2 shows it.
type Route struct {
	Type     string `json:"type"` // "" is unicast
	Dst      string `json:"dst"`
	Gateway  string `json:"gateway"`
	Dev      string `json:"dev"`
	Protocol string `json:"protocol"`
}

// Routes returns a node's routes inside a prefix.
func (l *Lab) Routes(ctx context.Context, node string, inside netip.Prefix) ([]Route, error) {
	out, err := l.Run(ctx, node, append(routeCommand("-json"), inside.String())...)
	if err != nil {
		return nil, err
	}
	var rs []Route
	if err := json.Unmarshal([]byte(out), &rs); err != nil {
		return nil, fmt.Errorf("read the routes of %s: %w", node, err)
	}
	return rs, nil
}

func routeCommand(flags ...string) []string {
	return append(append([]string{"ip"}, flags...), "route", "show", "root")
}

// AwaitRoutes returns when the cluster has converged: each node has the routes to the pods of other nodes that the mode
// calls for, and none changed between two looks. It looks at the nodes' kernels again and again until then, or until ctx
// ends; the error tells what was still missing.
func (l *Lab) AwaitRoutes(ctx context.Context, t Topology, mode Mode) error {
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	missing, before := "nothing was seen", ""
	for {
		all, err := l.allRoutes(ctx, t, st)
		switch {
		case err == nil:
			missing = missingRoutes(t, st, all, mode)
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
			return fmt.Errorf("routes for mode %s did not come: %s: %w", mode, cmp.Or(missing, "they keep changing"), context.Cause(ctx))
		case <-tick.C:
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
func missingRoutes(t Topology, st Status, all map[string][]Route, mode Mode) string {
	want := Expect(t, st.Pods, mode)
	for _, n := range st.Nodes {
		for _, pool := range t.Pools {
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
		tunnelled := want != PathDirect && want != PathNone
		found := false
		for _, r := range routes {
			tunnel := r.Dev == "vxlan.calico" || r.Dev == "tunl0"
			found = found || r.Dst == block.String() && r.Gateway != "" && tunnel == tunnelled
		}
		if !found {
			kind := "direct"
			if tunnelled {
				kind = string(want)
			}
			return fmt.Sprintf("%s has no %s route to %s of %s", node, kind, block, pod.ID)
		}
	}
	return ""
}

// routeTable is a node's routes inside a prefix, as the ip command prints them.
func (l *Lab) routeTable(ctx context.Context, node string, inside netip.Prefix) (string, error) {
	out, err := l.Run(ctx, node, append(routeCommand(), inside.String())...)
	return strings.TrimRight(out, "\n"), err
}
