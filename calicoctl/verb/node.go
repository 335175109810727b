package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	birdclient "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/calicoctl/table"
)

// The words that scripts look for.
const (
	running   = "Calico process is running."
	noBackend = "The BGP backend process (BIRD) is not running."
)

func node(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Look at the node that this runs on, or at another one"}
	cmd.AddCommand(nodeStatus(), nodeCheckMTU(), nodeCheckSystem(), nodeDrain(), nodeDiags(g))
	return cmd
}

func nodeStatus() *cobra.Command {
	var t target
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show a node's BGP sessions, and why those that are not up are not", Args: cobra.NoArgs,
		Long: "Show the BGP sessions of this node, or of another one through typha.\n" +
			"The sockets of this node's daemons are root's; who is not root is answered through typha, with an operator's certificate.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withNode(cmd.Context(), func(ctx context.Context, l live) error {
				if err := l.Felix(ctx); err != nil {
					return fmt.Errorf("Calico process is not running: %w", err) //nolint:revive,staticcheck // the words that scripts look for
				}
				status, err := l.Peers(ctx, "")
				if output == "yaml" || output == "json" {
					return show(cmd.OutOrStdout(), output, statusDocument(status, err, time.Now()), nil)
				}
				if output != "ps" && output != "wide" && output != "" {
					return fmt.Errorf("flag --output: unrecognized output format '%s'; use ps, wide, yaml or json", output)
				}
				printStatus(cmd.OutOrStdout(), status, err, output == "wide", time.Now())
				return nil
			})
		},
	}
	t.flags(cmd)
	wideFlag(cmd, &output)
	return cmd
}

func wideFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "ps", "ps, wide, yaml or json")
}

// printStatus writes the tables of both families, or why there are none. now decides whether a time is shown as of today.
func printStatus(w io.Writer, s birdclient.Status, failed error, wide bool, now time.Time) {
	fmt.Fprintln(w, running)
	if errors.Is(failed, errNoBird) {
		fmt.Fprintf(w, "\n%s\n", noBackend)
		return
	}
	if s.Drain == "draining" || s.Drain == "drained" {
		fmt.Fprintf(w, "The node is %s; calicoctl node drain-bgp --cancel puts it back into service.\n", s.Drain)
	}
	for _, v6 := range []bool{false, true} {
		family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		fmt.Fprintf(w, "\n%s BGP status\n", family)
		if failed != nil {
			fmt.Fprintf(w, "Error querying BIRD: %v\n", failed)
			continue
		}
		printSessions(w, family, s.Peers, v6, wide, now)
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "\nWarning: %s\n", warning)
	}
}

// printSessions writes the table of one family.
func printSessions(w io.Writer, family string, peers []birdclient.Peer, v6, wide bool, now time.Time) {
	titles := []string{"Peer address", "Peer type", "State", "Since", "Info"}
	if wide {
		titles = append(titles, "Uptime", "Flaps", "Received", "Accepted", "Advertised", "BFD", "AS", "Local AS")
	}
	rows := [][]string{titles}
	for _, p := range peers {
		if p.Address.Is6() != v6 {
			continue
		}
		row := []string{p.Address.String(), p.Type.String(), p.Protocol(), since(p.Since, now), p.Info()}
		if wide {
			row = append(row, uptime(p, now), number(p.Flaps), number(p.Received), number(p.Accepted), number(p.Advertised), dash(p.BFD),
				number(uint64(p.ASNumber)), number(uint64(p.LocalAS)))
		}
		rows = append(rows, row)
	}
	if len(rows) == 1 {
		fmt.Fprintf(w, "No %s peers found.\n", family)
		return
	}
	table.Boxed(w, rows)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// dash stands for what is not there.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func uptime(p birdclient.Peer, now time.Time) string {
	if p.State != birdclient.Established {
		return "-"
	}
	return p.Uptime(now).Truncate(time.Second).String()
}

// since is the time of today, or the date of earlier days.
func since(t, now time.Time) string {
	switch t, now := t.Local(), now.Local(); {
	case t.IsZero():
		return ""
	case t.YearDay() == now.YearDay() && t.Year() == now.Year():
		return t.Format("15:04:05")
	default:
		return t.Format("2006-01-02")
	}
}
