package lab

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"
)

// Status is a snapshot of a lab.
type Status struct {
	Name      string          `json:"name"`
	StateDir  string          `json:"stateDir"`
	Rootless  bool            `json:"rootless"`
	Datastore Datastore       `json:"datastore"`
	Backend   Backend         `json:"backend"`
	Nodes     []NodeStatus    `json:"nodes"`
	Processes []ProcessStatus `json:"processes"`
	Pods      []PodStatus     `json:"pods"`
	// Ended is what all programs of the lab that have ended used of a processor, the CNI plugins among them.
	Ended time.Duration `json:"ended"`
}

// NodeStatus is what the lab knows about a node.
type NodeStatus struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Interface string       `json:"interface"`
	Zone      string       `json:"zone,omitempty"`
}

// PodStatus is what the lab knows about a pod; addresses and interface are as the CNI plugin answered.
type PodStatus struct {
	ID            string       `json:"id"` // the name that exec and probe take
	Namespace     string       `json:"namespace"`
	Name          string       `json:"name"`
	Node          string       `json:"node"`
	Addresses     []netip.Addr `json:"addresses"`
	HostInterface string       `json:"hostInterface"` // its end on the node
	NetNS         string       `json:"netns"`         // its path inside the node
	// Took is how long CNI ADD took, start of the plugin included.
	Took time.Duration `json:"took"`
}

// Progress reports a step of bringing a lab up: once when it begins, and once, with its time, when it is done.
type Progress struct {
	Step string        `json:"step"`
	Done bool          `json:"done,omitempty"`
	Took time.Duration `json:"took,omitempty"`
}

// Print writes the snapshot as a table, processes first, as ps does.
func (s Status) Print(w io.Writer, now time.Time) error {
	mode := "root"
	if s.Rootless {
		mode = "user namespace"
	}
	fmt.Fprintf(w, "Lab %s (%s, %s), files in %s\n\n", s.Name, s.Datastore, mode, s.StateDir)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tADDRESS\tPROCESS\tPID\tSTATE\tSINCE\tSTARTS\tLAST EXIT")
	for _, n := range s.Nodes {
		empty := true
		for _, p := range s.Processes {
			if p.Node != n.Name {
				continue
			}
			empty = false
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", n.Name, joinAddrs(n.Addresses), p.Name, pidText(p.PID), p.State,
				now.Sub(p.Since).Round(time.Second), p.Starts, orDash(p.LastExit))
		}
		if empty {
			fmt.Fprintf(t, "%s\t%s\t-\t-\t-\t-\t-\t-\n", n.Name, joinAddrs(n.Addresses))
		}
	}
	if len(s.Pods) > 0 {
		fmt.Fprintln(t, "\nPOD\tADDRESS\tNODE\tINTERFACE")
		for _, p := range s.Pods {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.ID, joinAddrs(p.Addresses), p.Node, orDash(p.HostInterface))
		}
	}
	return t.Flush()
}

func joinAddrs(as []netip.Addr) string {
	parts := make([]string, len(as))
	for i, a := range as {
		parts[i] = a.String()
	}
	return orDash(strings.Join(parts, ","))
}

func pidText(pid int) string {
	if pid == 0 {
		return "-"
	}
	return fmt.Sprint(pid)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
