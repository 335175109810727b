package verb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/calicoctl/table"
	"github.com/muslin-net/muslin/datastore"
	felixclient "github.com/muslin-net/muslin/felix/client"
	typhaclient "github.com/muslin-net/muslin/typha/client"
)

func policy(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "See which policies apply to an endpoint, what they did, and what they would do"}
	cmd.AddCommand(policyShow(g), policyEval())
	return cmd
}

func policyShow(g *globals) *cobra.Command {
	var t target
	var output string
	cmd := &cobra.Command{
		Use: "show ENDPOINT", Short: "Show what applies to an endpoint, in order, with counters", Args: cobra.ExactArgs(1),
		Long: "Show the rules that apply to an endpoint in the order of their evaluation, with the packets that each decided on.\n" +
			"The endpoint is named as namespace/pod, by an address, by its id (orchestrator/namespace/workload/interface), by its\n" +
			"interface on the node, or by the name of a host endpoint. Its node is looked up in the datastore, unless --node\n" +
			"names it. Of a host endpoint each pass is shown that policies are in (untracked, preDNAT, forward, normal), in the\n" +
			"order in which a packet meets them, and the failsafe ports that stay open in all but the forward pass.\n\n" +
			"Packets are those that policy is asked about, the first of each connection, of all endpoints of the node that a\n" +
			"rule applies to. Counters begin at 0 when the policy changes.",
		Example: "  calicoctl policy show shop/web-0\n  calicoctl policy show worker-1-eth0\n  calicoctl policy show 192.168.133.192 -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if t.node == "" {
				node, err := g.nodeOf(ctx, args[0])
				if err != nil {
					return err
				}
				t.node = node
			}
			return t.withNode(ctx, func(ctx context.Context, l live) error {
				found, err := l.Endpoints(ctx, args[0])
				if err != nil {
					return err
				}
				if len(found) == 0 {
					return fmt.Errorf("endpoint %q is not on node %s", args[0], t.node)
				}
				report := make([]endpointReport, len(found))
				for i, e := range found {
					report[i] = endpointReportOf(e)
				}
				return show(cmd.OutOrStdout(), output, report, func(w io.Writer) { printEndpoints(w, report) })
			})
		},
	}
	t.flags(cmd)
	outputFlag(cmd, &output)
	return cmd
}

// nodeOf finds the node of an endpoint in the datastore; none is found for the name of an interface.
func (g *globals) nodeOf(ctx context.Context, name string) (node string, err error) {
	err = g.withDatastore(ctx, func(ctx context.Context, c datastore.Client) error {
		list, err := c.List(ctx, "WorkloadEndpoint", datastore.ListOptions{})
		if err != nil {
			return err
		}
		for _, o := range list.Items {
			if w, ok := o.(*api.WorkloadEndpoint); ok && slices.Contains(namesOf(w), name) {
				node = w.Spec.Node
				return nil
			}
		}
		if list, err = c.List(ctx, "HostEndpoint", datastore.ListOptions{}); err != nil {
			return err
		}
		for _, o := range list.Items {
			if h, ok := o.(*api.HostEndpoint); ok && (name == h.Name || name == "host/"+h.Name || slices.Contains(h.Spec.ExpectedIPs, name)) {
				node = h.Spec.Node
				return nil
			}
		}
		return fmt.Errorf("there is no endpoint %q; write namespace/pod, an address, orchestrator/namespace/workload/interface, or the name of a host endpoint; or name its node by --node", name)
	})
	if err != nil && node == "" {
		return "", err
	}
	return node, nil
}

// namesOf are the ways to name an endpoint.
func namesOf(w *api.WorkloadEndpoint) []string {
	s := w.Spec
	out := []string{s.InterfaceName}
	for _, workload := range []string{s.Pod, s.Workload, s.ContainerID} {
		if workload != "" {
			out = append(out, w.Namespace+"/"+workload, s.Orchestrator+"/"+w.Namespace+"/"+workload+"/"+s.Endpoint)
		}
	}
	for _, n := range s.IPNetworks {
		if p, err := netip.ParsePrefix(n); err == nil {
			out = append(out, p.Addr().String())
		}
	}
	return out
}

// endpointReport is an endpoint as documents have it.
type endpointReport struct {
	Endpoint  string       `json:"endpoint"`
	Interface string       `json:"interface"`
	Addresses []netip.Addr `json:"addresses"`
	Closed    []string     `json:"closedBecause,omitempty"`
	Failsafe  *failsafes   `json:"failsafePorts,omitempty"` // of a host endpoint
	Ingress   []ruleReport `json:"ingress"`
	Egress    []ruleReport `json:"egress"`
}

// failsafes are the ports that stay open.
type failsafes struct {
	Inbound  []string `json:"inbound,omitempty"`
	Outbound []string `json:"outbound,omitempty"`
}

type ruleReport struct {
	Pass    string `json:"pass,omitempty"` // of a host endpoint
	Tier    string `json:"tier,omitempty"`
	Policy  string `json:"policy,omitempty"`
	Rule    *int   `json:"rule,omitempty"` // none: the end of the tier, or of all
	Action  string `json:"action,omitempty"`
	Match   string `json:"match,omitempty"`
	Staged  bool   `json:"staged,omitempty"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func endpointReportOf(e felixclient.Endpoint) endpointReport {
	out := endpointReport{Endpoint: e.ID, Interface: e.Interface, Addresses: e.Addresses, Closed: e.Closed, Ingress: []ruleReport{}, Egress: []ruleReport{}}
	if len(e.FailsafeIn)+len(e.FailsafeOut) > 0 {
		out.Failsafe = &failsafes{e.FailsafeIn, e.FailsafeOut}
	}
	for _, r := range e.Rules {
		one := ruleReport{Pass: r.Pass, Tier: r.Tier, Policy: r.Policy, Action: r.Action, Match: r.Match, Staged: r.Staged, Packets: r.Packets, Bytes: r.Bytes}
		if r.Rule >= 0 {
			one.Rule = &r.Rule
		}
		if r.Egress {
			out.Egress = append(out.Egress, one)
		} else {
			out.Ingress = append(out.Ingress, one)
		}
	}
	return out
}

func printEndpoints(w io.Writer, all []endpointReport) {
	for _, e := range all {
		var addrs []string
		for _, a := range e.Addresses {
			addrs = append(addrs, a.String())
		}
		fmt.Fprintf(w, "%s (%s)\n", e.Endpoint, strings.Join(append([]string{cmp.Or(e.Interface, "no interface")}, addrs...), ", "))
		for _, why := range e.Closed {
			fmt.Fprintf(w, "CLOSED: %s\n", why)
		}
		if f := e.Failsafe; f != nil {
			fmt.Fprintf(w, "Always open in:  %s\nAlways open out: %s\n", dash(strings.Join(f.Inbound, ", ")), dash(strings.Join(f.Outbound, ", ")))
		}
		for _, way := range []struct {
			title string
			rules []ruleReport
		}{{"Ingress", e.Ingress}, {"Egress", e.Egress}} {
			fmt.Fprintf(w, "\n%s:\n", way.title)
			rows := [][]string{{"PASS", "TIER", "POLICY", "RULE", "ACTION", "MATCH", "PACKETS", "BYTES"}}
			for _, r := range way.rules {
				rows = append(rows, append([]string{r.Pass}, r.row()...))
			}
			_ = table.Rows(w, passes(rows, 0))
		}
	}
}

// passes leaves out the column of passes if nothing is in it.
func passes(rows [][]string, column int) [][]string {
	some := slices.ContainsFunc(rows[1:], func(r []string) bool { return r[column] != "" })
	for i := range rows {
		if rows[i][column] = dash(rows[i][column]); !some {
			rows[i] = slices.Delete(rows[i], column, column+1)
		}
	}
	return rows
}

func (r ruleReport) row() []string {
	rule, policy, action, match := "-", dash(r.Policy), dash(r.Action), dash(r.Match)
	packets, bytes := number(r.Packets), number(r.Bytes)
	switch {
	case r.Rule != nil:
		rule = strconv.Itoa(*r.Rule)
		if r.Match == "" {
			match = "everything"
		}
	case r.Policy != "":
		rule, packets, bytes = "(none)", "-", "-"
	case r.Tier != "":
		policy = "(end of tier)"
	default:
		policy = "(end)"
	}
	if r.Staged {
		action = "(" + r.Action + ")"
	}
	if r.Action == "Log" {
		packets, bytes = "-", "-"
	}
	return []string{dash(r.Tier), policy, rule, action, match, packets, bytes}
}

func policyEval() *cobra.Command {
	var t target
	var from, to, port, output string
	cmd := &cobra.Command{
		Use: "eval --from A --to B --port PROTOCOL/PORT", Short: "Say whether policy lets a connection pass, and which rule decides on each side", Args: cobra.NoArgs,
		Long: "Say what policy does to a connection from A to B, and which rules decide, in the order in which its first packet meets\n" +
			"them. The answer comes from the control plane: it is what policies say, whether or not nodes have programmed them\n" +
			"yet. A and B are namespace/pod, an endpoint's id (orchestrator/namespace/workload/interface), the name of a host\n" +
			"endpoint or of a node, or any address. Host endpoints of both nodes have their say: those of the interfaces by which\n" +
			"the nodes tell that they are reached, or of the tunnel's. B is who is meant after the translation of a service's\n" +
			"address, also in the preDNAT pass; A may be translated by natOutgoing, which the answer says.\n" +
			"A rule that asks for a source port, or for a type of ICMP that --port does not say, is passed over, and the answer\n" +
			"names it. Exit 0 if the connection passes, 1 if not.",
		Example: "  calicoctl policy eval --from shop/web-0 --to shop/db-0 --port tcp/5432\n  calicoctl policy eval --from 203.0.113.7 --to shop/web-0 --port 443\n  calicoctl policy eval --from 203.0.113.7 --to worker-1 --port tcp/10250\n  calicoctl policy eval --from shop/web-0 --to shop/db-0 --port icmp/8",
		RunE: func(cmd *cobra.Command, _ []string) error {
			packet, err := packetOf(from, to, port)
			if err != nil {
				return err
			}
			c, err := t.operator()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), farAnswer)
			defer cancel()
			e, err := c.ExplainPolicy(ctx, packet)
			if err != nil {
				return err
			}
			report := evalReport{From: from, To: to, Port: port, Allowed: e.Allowed, Decisions: decisionReports(e.Decisions), Notes: e.Notes}
			if err := show(cmd.OutOrStdout(), output, report, func(w io.Writer) { printEval(w, report) }); err != nil {
				return err
			}
			if !e.Allowed {
				return errors.New("the connection is denied")
			}
			return nil
		},
	}
	t.flags(cmd)
	outputFlag(cmd, &output)
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "who connects")
	f.StringVar(&to, "to", "", "to whom")
	f.StringVar(&port, "port", "", "protocol/port, as tcp/443; a port alone is TCP's, a protocol alone has none; of ICMP icmp/type or icmp/type/code")
	for _, name := range []string{"from", "to", "port"} {
		_ = cmd.MarkFlagRequired(name) // it exists
	}
	return cmd
}

// packetOf reads the flags that say which connection is meant.
func packetOf(from, to, text string) (p typhaclient.Packet, err error) {
	p = typhaclient.Packet{From: from, To: to}
	protocol, port, both := strings.Cut(text, "/")
	if _, err := strconv.Atoi(text); !both && err == nil {
		protocol, port, both = "tcp", text, true
	}
	number, ok := api.Protocol(canonical(protocol)).Number()
	if !ok {
		return p, fmt.Errorf("flag --port: %q is not a protocol; write tcp, udp, sctp, icmp or a number, as in tcp/443", protocol)
	}
	p.Protocol = view.Protocol(number)
	if icmp := p.Protocol == packet.ICMP || p.Protocol == packet.ICMPv6; icmp && both {
		p.ICMP, err = icmpOf(port)
		return p, err
	}
	if both {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return p, fmt.Errorf("flag --port: %q is not a port; write it as in tcp/443", port)
		}
		p.Port = uint16(n)
	}
	return p, nil
}

// icmpOf reads a type, or type/code.
func icmpOf(text string) (*view.ICMP, error) {
	of, code, coded := strings.Cut(text, "/")
	n, err := strconv.ParseUint(of, 10, 8)
	out := &view.ICMP{Type: uint8(n)}
	if err == nil && coded {
		n, err = strconv.ParseUint(code, 10, 8)
		out.Code = new(uint8(n))
	}
	if err != nil {
		return nil, fmt.Errorf("flag --port: %q is no type of ICMP; write it as in icmp/8, or with the code, as in icmp/3/1", text)
	}
	return out, nil
}

// canonical is the name of a protocol as the API has it.
func canonical(protocol string) string {
	switch upper := strings.ToUpper(protocol); upper {
	case "ICMPV6":
		return "ICMPv6"
	case "UDPLITE":
		return "UDPLite"
	default:
		return upper
	}
}

// evalReport is the answer as documents have it.
type evalReport struct {
	From      string           `json:"from"`
	To        string           `json:"to"`
	Port      string           `json:"port"`
	Allowed   bool             `json:"allowed"`
	Decisions []decisionReport `json:"decisions"`
	Notes     []string         `json:"notes,omitempty"`
}

type decisionReport struct {
	Endpoint  string `json:"endpoint"`
	Direction string `json:"direction"`
	Pass      string `json:"pass,omitempty"` // of a host endpoint
	Allowed   bool   `json:"allowed"`
	By        string `json:"by"`
	Rule      *int   `json:"rule,omitempty"` // none: no rule decided
}

func decisionReports(all []typhaclient.Decision) []decisionReport {
	out := make([]decisionReport, len(all))
	for i, d := range all {
		out[i] = decisionReport{Endpoint: d.Endpoint, Direction: "ingress", Pass: d.Pass, Allowed: d.Allowed, By: d.By}
		if d.Egress {
			out[i].Direction = "egress"
		}
		if d.Rule >= 0 {
			out[i].Rule = &all[i].Rule
		}
	}
	return out
}

func printEval(w io.Writer, r evalReport) {
	verdict := map[bool]string{true: "allowed", false: "denied"}
	fmt.Fprintf(w, "%s to %s, %s: %s\n\n", r.From, r.To, r.Port, verdict[r.Allowed])
	defer func() {
		for _, note := range r.Notes {
			fmt.Fprintf(w, "\n%s\n", note)
		}
	}()
	if len(r.Decisions) == 0 {
		fmt.Fprintln(w, "No policy is asked: neither end is a workload, and no host endpoint is in the way.")
		return
	}
	rows := [][]string{{"ENDPOINT", "DIRECTION", "PASS", "VERDICT", "BY", "RULE"}}
	for _, d := range r.Decisions {
		rule := "-"
		if d.Rule != nil {
			rule = strconv.Itoa(*d.Rule)
		}
		rows = append(rows, []string{d.Endpoint, d.Direction, d.Pass, verdict[d.Allowed], d.By, rule})
	}
	_ = table.Rows(w, passes(rows, 2))
}
