package verb

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	birdclient "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/calicoctl/table"
	felixclient "github.com/muslin-net/muslin/felix/client"
)

// How long a daemon of this node has to answer.
const answer = 2 * time.Second

// The words that scripts look for.
const (
	running   = "Calico process is running."
	noBackend = "The BGP backend process (BIRD) is not running."
)

func node() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Look at the node that this runs on"}
	cmd.AddCommand(nodeStatus(), nodeCheckMTU(), nodeCheckSystem())
	return cmd
}

func nodeStatus() *cobra.Command {
	var bird, felix string
	cmd := &cobra.Command{
		Use: "status", Short: "Show the node's BGP sessions (needs root)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := felixAnswers(cmd.Context(), felix); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			sessions, err := birdSessions(cmd.Context(), bird)
			if err != nil {
				fmt.Fprintf(out, "%s\n\n%s\n", running, noBackend)
				if listens(bird) { // it should answer, then
					fmt.Fprintln(cmd.ErrOrStderr(), err)
				}
				return nil
			}
			printStatus(out, sessions, time.Now())
			return nil
		},
	}
	cmd.Flags().StringVar(&bird, "bird-socket", birdclient.DefaultSocket, "where bird serves")
	cmd.Flags().StringVar(&felix, "felix-socket", felixclient.DefaultSocket, "where felix serves")
	return cmd
}

func felixAnswers(ctx context.Context, socket string) error {
	c, err := felixclient.Dial(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	if _, err := c.Dump(ctx, []string{"none"}, true); err != nil {
		return fmt.Errorf("Calico process is not running: %w", err) //nolint:revive,staticcheck // the words that scripts look for
	}
	return nil
}

// listens tells whether anybody serves a socket.
func listens(socket string) bool {
	c, err := net.DialTimeout("unix", socket, answer)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func birdSessions(ctx context.Context, socket string) ([]birdclient.Peer, error) {
	c, err := birdclient.New(socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	status, err := c.Peers(ctx, "")
	return status.Peers, err
}

// printStatus writes the tables of both families. now decides whether a time is shown as of today.
func printStatus(w io.Writer, sessions []birdclient.Peer, now time.Time) {
	fmt.Fprintln(w, running)
	printSessions(w, "IPv4", sessions, false, now)
	printSessions(w, "IPv6", sessions, true, now)
}

// printSessions writes the table of one family.
func printSessions(w io.Writer, family string, peers []birdclient.Peer, v6 bool, now time.Time) {
	rows := [][]string{{"Peer address", "Peer type", "State", "Since", "Info"}}
	for _, p := range peers {
		if p.Address.Is6() == v6 {
			rows = append(rows, []string{p.Address.String(), p.Type.String(), p.Protocol(), since(p.Since, now), p.Info()})
		}
	}
	fmt.Fprintf(w, "\n%s BGP status\n", family)
	if len(rows) == 1 {
		fmt.Fprintf(w, "No %s peers found.\n", family)
		return
	}
	table.Boxed(w, rows)
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
