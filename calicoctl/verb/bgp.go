package verb

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	birdclient "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/calicoctl/table"
)

// shortHistory is how many changes of each session's state are shown where nobody asked for one session.
const shortHistory = 5

func bgp() *cobra.Command {
	cmd := &cobra.Command{Use: "bgp", Short: "Look into the BGP speaker of a node: its sessions, its routes, and what was rejected"}
	cmd.AddCommand(bgpPeers(), bgpRoutes(), bgpRejected())
	return cmd
}

// look is what the commands below have in common.
type look struct {
	target
	peer, within, output string
}

func (k *look) flags(cmd *cobra.Command) {
	k.target.flags(cmd)
	cmd.Flags().StringVar(&k.peer, "peer", "", "only this session, by its name or address")
	wideFlag(cmd, &k.output)
}

func (k *look) routeFlags(cmd *cobra.Command) {
	k.flags(cmd)
	cmd.Flags().StringVar(&k.within, "within", "", "only routes inside this CIDR")
}

// inside reads the flag --within.
func (k *look) inside() (netip.Prefix, error) {
	if k.within == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(k.within)
	if err != nil {
		return p, fmt.Errorf("flag --within: %q is no CIDR; write it like 10.0.0.0/8", k.within)
	}
	return p.Masked(), nil
}

// print writes a document, or a table for people.
func (k *look) print(w io.Writer, report any, people func(wide bool) error) error {
	if k.output == "yaml" || k.output == "json" {
		return show(w, k.output, report, nil)
	}
	if k.output != "ps" && k.output != "wide" && k.output != "" {
		return fmt.Errorf("flag --output: unrecognized output format '%s'; use ps, wide, yaml or json", k.output)
	}
	return people(k.output == "wide")
}

func bgpPeers() *cobra.Command {
	var k look
	cmd := &cobra.Command{
		Use: "peers", Short: "Show the sessions of a node, with their histories", Args: cobra.NoArgs,
		Long: "Show the BGP sessions of a node. -o wide adds the last changes of each, with --peer all that are kept.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return k.withNode(cmd.Context(), func(ctx context.Context, l live) error {
				s, err := l.Peers(ctx, k.peer)
				if err != nil {
					return err
				}
				now := time.Now()
				return k.print(cmd.OutOrStdout(), peerReports(s.Peers, now), func(wide bool) error {
					return printPeers(cmd.OutOrStdout(), s.Peers, wide, k.peer != "", now)
				})
			})
		},
	}
	k.flags(cmd)
	return cmd
}

func printPeers(w io.Writer, peers []birdclient.Peer, wide, whole bool, now time.Time) error {
	titles := []string{"NAME", "ADDRESS", "AS", "STATE", "UPTIME", "RECEIVED", "ACCEPTED", "ADVERTISED", "REASON"}
	if wide {
		titles = []string{
			"NAME", "ADDRESS", "AS", "STATE", "UPTIME", "RECEIVED", "ACCEPTED", "ADVERTISED", "FLAPS", "BFD", "LOCAL AS", "SOURCE", "REASON",
		}
	}
	rows := [][]string{titles}
	for _, p := range peers {
		row := []string{
			p.Name, p.Address.String(), number(uint64(p.ASNumber)), p.State.String(), uptime(p, now), number(p.Received),
			number(p.Accepted), number(p.Advertised),
		}
		if wide {
			row = append(row, number(p.Flaps), dash(p.BFD), number(uint64(p.LocalAS)), dash(p.Source))
		}
		rows = append(rows, append(row, dash(p.Reason())))
	}
	if err := table.Rows(w, rows); err != nil || !wide {
		return err
	}
	for _, p := range peers {
		if len(p.History) == 0 {
			continue
		}
		history := p.History
		if !whole {
			history = history[:min(len(history), shortHistory)]
		}
		fmt.Fprintf(w, "History of %s, newest first:\n", p.Name)
		rows := [][]string{{"TIME", "STATE", "REASON"}}
		for _, t := range history {
			rows = append(rows, []string{t.At.Local().Format("2006-01-02 15:04:05"), t.State.String(), dash(t.Reason)})
		}
		if err := table.Rows(w, rows); err != nil {
			return err
		}
	}
	return nil
}

// views are the values of --view.
var views = map[string]birdclient.View{
	"table": birdclient.Table, "received": birdclient.Received, "accepted": birdclient.Accepted, "rejected": birdclient.Rejected,
	"advertised": birdclient.Advertised, "withheld": birdclient.Withheld,
}

// routeReport is a route as documents have it.
type routeReport struct {
	Prefix          string   `json:"prefix"`
	NextHop         string   `json:"nextHop,omitempty"`
	Peer            string   `json:"peer,omitempty"` // the session in question, or the one that it came from
	Best            bool     `json:"best,omitempty"`
	Direction       string   `json:"direction,omitempty"` // of what was rejected: import or export
	RejectedBy      string   `json:"rejectedBy,omitempty"`
	Metric          uint32   `json:"metric,omitempty"`
	LocalPreference uint32   `json:"localPreference"`
	MED             uint32   `json:"med,omitempty"`
	Origin          string   `json:"origin,omitempty"`
	ASPath          []uint32 `json:"asPath,omitempty"`
	Communities     []string `json:"communities,omitempty"`
	Stale           bool     `json:"stale,omitempty"`

	prefix netip.Prefix
}

func routeOf(r birdclient.Route) routeReport {
	out := routeReport{
		Prefix: r.Prefix.String(), Peer: r.Path.Peer, Best: r.Best, RejectedBy: r.RejectedBy, Metric: r.Path.Metric,
		LocalPreference: r.Path.Preference, MED: r.Path.MED, Origin: r.Path.Origin, ASPath: r.Path.ASPath,
		Communities: r.Path.Communities, Stale: r.Path.Stale, prefix: r.Prefix,
	}
	if r.Path.NextHop.IsValid() && !r.Path.NextHop.IsUnspecified() {
		out.NextHop = r.Path.NextHop.String()
	}
	if out.Peer == "" && r.Path.PeerAddress.IsValid() {
		out.Peer = r.Path.PeerAddress.String()
	}
	return out
}

func sortRoutes(list []routeReport) {
	slices.SortStableFunc(list, func(a, b routeReport) int {
		best := map[bool]int{true: 0, false: 1}
		return cmp.Or(a.prefix.Compare(b.prefix), strings.Compare(a.Direction, b.Direction), best[a.Best]-best[b.Best],
			strings.Compare(a.Peer, b.Peer), strings.Compare(a.NextHop, b.NextHop))
	})
}

func bgpRoutes() *cobra.Command {
	var k look
	var from string
	cmd := &cobra.Command{
		Use: "routes", Short: "Show the routes of a node's BGP speaker", Args: cobra.NoArgs,
		Long: "Show the routes of a node's BGP speaker: the table with the routes of this node and those that peers sent and were\n" +
			"accepted; or, with --peer, those of one session: what was received, accepted, rejected, advertised or withheld.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				from = map[bool]string{true: "table", false: "accepted"}[k.peer == ""]
			}
			view, ok := views[from]
			if !ok {
				return fmt.Errorf("flag --view: %q is not a view; use table, received, accepted, rejected, advertised or withheld", from)
			}
			if view != birdclient.Table && k.peer == "" {
				return fmt.Errorf("flag --view: %s is one session's; name it by --peer", from)
			}
			within, err := k.inside()
			if err != nil {
				return err
			}
			return k.withNode(cmd.Context(), func(ctx context.Context, l live) error {
				list := []routeReport{}
				err := l.Routes(ctx, view, k.peer, within, func(r birdclient.Route) { list = append(list, routeOf(r)) })
				if err != nil {
					return err
				}
				sortRoutes(list)
				return k.print(cmd.OutOrStdout(), list, func(wide bool) error { return printRoutes(cmd.OutOrStdout(), list, view, wide) })
			})
		},
	}
	k.routeFlags(cmd)
	cmd.Flags().StringVar(&from, "view", "", "table, received, accepted, rejected, advertised or withheld; default is table, and accepted with --peer")
	return cmd
}

func printRoutes(w io.Writer, list []routeReport, view birdclient.View, wide bool) error {
	titles := []string{"PREFIX", "NEXT HOP", "FROM", "BEST", "METRIC", "AS PATH"}
	if wide {
		titles = append(titles, "LOCAL PREF", "MED", "ORIGIN", "COMMUNITIES")
	}
	judged := view == birdclient.Rejected || view == birdclient.Withheld
	if judged {
		titles = append(titles, "REJECTED BY")
	}
	rows := [][]string{titles}
	for _, r := range list {
		from := r.Peer
		if from == "" {
			from = "this node"
		}
		best := map[bool]string{true: "*", false: ""}[r.Best]
		row := []string{r.Prefix, dash(r.NextHop), from, best, number(uint64(r.Metric)), asPath(r.ASPath)}
		if wide {
			row = append(row, r.attributes()...)
		}
		if judged {
			row = append(row, dash(r.RejectedBy))
		}
		rows = append(rows, row)
	}
	return table.Rows(w, rows)
}

// attributes are the columns that -o wide adds.
func (r routeReport) attributes() []string {
	return []string{number(uint64(r.LocalPreference)), number(uint64(r.MED)), dash(r.Origin), dash(strings.Join(r.Communities, " "))}
}

func asPath(list []uint32) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Trim(fmt.Sprint(list), "[]")
}

func bgpRejected() *cobra.Command {
	var k look
	var direction string
	cmd := &cobra.Command{
		Use: "rejected", Short: "Show which routes were rejected, and by what", Args: cobra.NoArgs,
		Long: "Show which routes of peers a node did not accept, and which it does not advertise, with what decided: a rule of a\n" +
			"BGPFilter, a pool with disableBGPExport, an own AS number in the path, a next hop that cannot be reached.\n" +
			"Without --peer only the first, of all peers, unless --direction says otherwise.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if direction == "" {
				direction = map[bool]string{true: "import", false: "both"}[k.peer == ""]
			}
			ways, ok := map[string][]string{"import": {"import"}, "export": {"export"}, "both": {"import", "export"}}[direction]
			if !ok {
				return fmt.Errorf("flag --direction: %q is none; use import, export or both", direction)
			}
			within, err := k.inside()
			if err != nil {
				return err
			}
			return k.withNode(cmd.Context(), func(ctx context.Context, l live) error {
				list, err := rejected(ctx, l, k.peer, ways, within)
				if err != nil {
					return err
				}
				return k.print(cmd.OutOrStdout(), list, func(wide bool) error { return printRejected(cmd.OutOrStdout(), list, wide) })
			})
		},
	}
	k.routeFlags(cmd)
	cmd.Flags().StringVar(&direction, "direction", "", "import, export or both; default is import, and both with --peer")
	return cmd
}

// rejected asks for what was rejected on the sessions that are up, or on one.
func rejected(ctx context.Context, l live, peer string, ways []string, within netip.Prefix) ([]routeReport, error) {
	s, err := l.Peers(ctx, peer)
	if err != nil {
		return nil, err
	}
	list := []routeReport{}
	for _, p := range s.Peers {
		if p.State != birdclient.Established && !p.Restarting {
			continue
		}
		for _, way := range ways {
			view := map[string]birdclient.View{"import": birdclient.Rejected, "export": birdclient.Withheld}[way]
			err := l.Routes(ctx, view, p.Name, within, func(r birdclient.Route) {
				one := routeOf(r)
				one.Peer, one.Direction = p.Name, way
				list = append(list, one)
			})
			if err != nil { // what one session cannot be asked, the others cannot either
				return nil, err
			}
		}
	}
	sortRoutes(list)
	return list, nil
}

func printRejected(w io.Writer, list []routeReport, wide bool) error {
	titles := []string{"PREFIX", "PEER", "DIRECTION", "REJECTED BY"}
	if wide {
		titles = append(titles, "NEXT HOP", "AS PATH", "LOCAL PREF", "MED", "ORIGIN", "COMMUNITIES")
	}
	rows := [][]string{titles}
	for _, r := range list {
		row := []string{r.Prefix, r.Peer, r.Direction, dash(r.RejectedBy)}
		if wide {
			row = append(append(row, dash(r.NextHop), asPath(r.ASPath)), r.attributes()...)
		}
		rows = append(rows, row)
	}
	return table.Rows(w, rows)
}
