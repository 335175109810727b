package verb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/muslin-net/muslin/calicoctl/table"
	felixclient "github.com/muslin-net/muslin/felix/client"
)

// trial is how long felix may try things out: paths to many nodes that do not answer take a while.
const trial = time.Minute

func nodeCheckMTU() *cobra.Command {
	var felix, output string
	cmd := &cobra.Command{
		Use: "checkmtu [NODE...]", Short: "Find paths to other nodes that packets of full size do not fit (needs root)",
		Long: "Have felix send packets of full size, that nobody may take apart, from this node to all others or to the named ones.\n" +
			"Fails if one does not arrive. Each node tries the way from it only: ask them all.",
		RunE: func(cmd *cobra.Command, nodes []string) error {
			var found []felixclient.PathCheck
			err := askFelix(cmd.Context(), felix, func(ctx context.Context, c *felixclient.Client) (err error) {
				found, err = c.CheckPaths(ctx, nodes)
				return err
			})
			if err != nil {
				return err
			}
			paths := pathReports(found)
			if err := show(cmd.OutOrStdout(), output, paths, func(w io.Writer) { printPaths(w, paths) }); err != nil {
				return err
			}
			return tooSmall(paths)
		},
	}
	felixSocket(cmd, &felix)
	outputFlag(cmd, &output)
	return cmd
}

// pathReport is one path as documents have it. Sizes are those of IP packets, in bytes.
type pathReport struct {
	Node         string  `json:"node"`
	Address      string  `json:"address"`
	By           string  `json:"by"`
	Wanted       int     `json:"wanted"`
	Fits         int     `json:"fits"`
	OK           bool    `json:"ok"`
	Milliseconds float64 `json:"roundTripMilliseconds,omitempty"`
	Error        string  `json:"error,omitempty"`
}

// pathReports are in the order of nodes and addresses.
func pathReports(found []felixclient.PathCheck) []pathReport {
	slices.SortFunc(found, func(a, b felixclient.PathCheck) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.Address.Compare(b.Address))
	})
	out := make([]pathReport, len(found))
	for i, p := range found {
		out[i] = pathReport{
			Node: p.Node, Address: p.Address.String(), By: p.By, Wanted: p.Wanted, Fits: p.Fits, OK: p.Fits >= p.Wanted,
			Milliseconds: float64(p.RoundTrip.Microseconds()) / 1000, Error: p.Error,
		}
	}
	return out
}

func printPaths(w io.Writer, paths []pathReport) {
	if len(paths) == 0 {
		fmt.Fprintln(w, "There are no other nodes that pods' packets go to.")
		return
	}
	rows := [][]string{{"Node", "Address", "By", "Wanted", "Fits", "Round trip", "Info"}}
	for _, p := range paths {
		fits, trip, info := strconv.Itoa(p.Fits), fmt.Sprintf("%.3f ms", p.Milliseconds), "ok"
		switch {
		case p.Error != "":
			fits, trip, info = "-", "-", "unreachable"
		case !p.OK:
			info = "too small"
		}
		rows = append(rows, []string{p.Node, p.Address, p.By, strconv.Itoa(p.Wanted), fits, trip, info})
	}
	table.Boxed(w, rows)
}

// settings are the fields of FelixConfiguration that say how large packets of each way are.
var settings = map[string]string{"vxlan": "vxlanMTU", "ipip": "ipipMTU"}

// tooSmall names the paths that do not fit, and what to do.
func tooSmall(paths []pathReport) error {
	var out []string
	for _, p := range paths {
		switch {
		case p.Error != "":
			out = append(out, fmt.Sprintf("node %s (%s): %s", p.Node, p.Address, p.Error))
		case !p.OK:
			out = append(out, fmt.Sprintf("node %s (%s): packets of %d bytes do not arrive, the largest that do have %d; %s", p.Node, p.Address, p.Wanted, p.Fits, p.advice()))
		}
	}
	if len(out) == 0 {
		return nil
	}
	return errors.New(strings.Join(out, "\n"))
}

// overheads are what tunnels add to a packet, in bytes.
var overheads = map[string]int{"vxlan": 50, "vxlanV6": 70, "ipip": 20}

// advice is what to do about a path that is too small: the path itself is at fault, unless it cannot be mended.
func (p pathReport) advice() string {
	mend := fmt.Sprintf("raise the MTU of the links on the way to %d", p.Wanted)
	setting := settings[p.By]
	if setting == "" {
		return fmt.Sprintf("%s, or lower that of the nodes' interfaces to %d", mend, p.Fits)
	}
	overhead := overheads[p.By]
	if p.By == "vxlan" && strings.Contains(p.Address, ":") {
		setting, overhead = "vxlanMTUV6", overheads["vxlanV6"]
	}
	return fmt.Sprintf("%s, or set %s to %d in FelixConfiguration", mend, setting, p.Fits-overhead)
}

func nodeCheckSystem() *cobra.Command {
	var felix, output, kernelConfig string
	cmd := &cobra.Command{
		Use: "checksystem", Short: "Tell whether this node's kernel can do what is needed (needs root)", Args: cobra.NoArgs,
		Long: "Have felix try what its node's kernel can do, and compare with what pods and pools need.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var report systemReport
			err := askFelix(cmd.Context(), felix, func(ctx context.Context, c *felixclient.Client) error {
				found, kernel, err := c.CheckSystem(ctx)
				report = systemOf(found, kernel)
				return err
			})
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), output, report, func(w io.Writer) { printSystem(w, report) }); err != nil {
				return err
			}
			return report.missing()
		},
	}
	felixSocket(cmd, &felix)
	outputFlag(cmd, &output)
	cmd.Flags().StringVarP(&kernelConfig, "kernel-config", "f", "", "accepted for compatibility: what a kernel can do is found out by doing")
	return cmd
}

// systemReport is what the kernel can do, as documents have it.
type systemReport struct {
	Kernel   string          `json:"kernel"`
	Features []featureReport `json:"features"`
}

type featureReport struct {
	Name     string `json:"name"`
	Present  bool   `json:"present"`
	NeededBy string `json:"neededBy,omitempty"`
	Detail   string `json:"detail,omitempty"`
}

func systemOf(found []felixclient.Feature, kernel string) systemReport {
	out := systemReport{Kernel: kernel}
	for _, f := range found {
		out.Features = append(out.Features, featureReport(f))
	}
	return out
}

func printSystem(w io.Writer, r systemReport) {
	fmt.Fprintf(w, "Checking kernel version...\n%s\n\nChecking kernel features...\n", r.Kernel)
	rows := [][]string{{"Feature", "State", "Needed by", "Info"}}
	for _, f := range r.Features {
		state := "OK"
		switch {
		case !f.Present && f.NeededBy != "":
			state = "MISSING"
		case !f.Present:
			state = "no"
		}
		rows = append(rows, []string{f.Name, state, f.NeededBy, f.Detail})
	}
	table.Boxed(w, rows)
	if r.missing() == nil {
		fmt.Fprintln(w, "System meets minimum system requirements to run Calico!")
	}
}

// missing names what is needed and not there.
func (r systemReport) missing() error {
	var out []string
	for _, f := range r.Features {
		if !f.Present && f.NeededBy != "" {
			out = append(out, fmt.Sprintf("%s, needed by %s: %s", f.Name, f.NeededBy, f.Detail))
		}
	}
	if len(out) == 0 {
		return nil
	}
	return errors.New("System doesn't meet one or more minimum systems requirements to run Calico:\n" + strings.Join(out, "\n")) //nolint:revive,staticcheck // the words that scripts look for
}

// askFelix opens felix's socket for one question.
func askFelix(ctx context.Context, socket string, ask func(context.Context, *felixclient.Client) error) error {
	c, err := felixclient.Dial(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, trial)
	defer cancel()
	return ask(ctx, c)
}

func felixSocket(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "felix-socket", felixclient.DefaultSocket, "where felix serves")
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "ps", "ps, yaml or json")
}

// show writes a report for people, or as a document.
func show(w io.Writer, output string, report any, people func(io.Writer)) error {
	switch output {
	case "ps", "":
		people(w)
		return nil
	case "json":
		body, err := json.MarshalIndent(report, "", "  ")
		fmt.Fprintln(w, string(body))
		return err
	case "yaml":
		return showYAML(w, report)
	}
	return fmt.Errorf("flag --output: unrecognized output format '%s'; use ps, yaml or json", output)
}

// showYAML shows what is shown as JSON, with each number to its last digit: there are more addresses in an IPv6 pool than 64 bits count.
func showYAML(w io.Writer, report any) error {
	body, err := json.Marshal(report)
	if err != nil {
		return err
	}
	in := json.NewDecoder(bytes.NewReader(body))
	in.UseNumber()
	var doc any
	if err := in.Decode(&doc); err != nil {
		return err
	}
	out := yaml.NewEncoder(w)
	out.SetIndent(2)
	out.CompactSeqIndent()
	return errors.Join(out.Encode(exact(doc)), out.Close())
}

// exact is a document whose numbers are written as they are.
func exact(doc any) any {
	switch v := doc.(type) {
	case map[string]any:
		for key := range v {
			v[key] = exact(v[key])
		}
	case []any:
		for i := range v {
			v[i] = exact(v[i])
		}
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: v.String()}
	}
	return doc
}
