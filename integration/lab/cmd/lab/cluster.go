package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/integration/lab"
)

func upCmd(f *flags) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "up -f FILE",
		Short: "Bring a lab up and wait until its nodes and pods are ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			topology, err := lab.ReadTopology(file)
			if err != nil {
				return err
			}
			began := time.Now()
			l, err := lab.Up(cmd.Context(), lab.Options{
				Name: f.name, StateDir: f.stateDir, BinDir: f.binDir, Topology: topology,
				Progress: lab.PrintProgress(cmd.ErrOrStderr()),
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "lab %s is up after %.1f s, files in %s\n", l.Name(), time.Since(began).Seconds(), l.StateDir())
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "topology to build")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

func downCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab and all that is left of it, also after a crash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Down(cmd.Context(), f.name, f.stateDir)
		},
	}
}

func listCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name the labs in the default place",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.List()
			for _, n := range names {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return err
		},
	}
}

func statusCmd(f *flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "status",
		Aliases: []string{"ps"},
		Short:   "Show nodes, processes and pods",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			st, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), format, st, func(w io.Writer) error { return st.Print(w, time.Now()) })
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func podCmd(f *flags) *cobra.Command {
	cmd := &cobra.Command{Use: "pod", Short: "Add and delete pods"}
	var labels []string
	add := &cobra.Command{
		Use:   "add [NAMESPACE/]NAME NODE",
		Short: "Make a pod on a node through the CNI plugin",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			pod := lab.Pod{Name: args[0], Node: args[1], Labels: map[string]string{}}
			if ns, name, ok := strings.Cut(args[0], "/"); ok {
				pod.Namespace, pod.Name = ns, name
			}
			for _, kv := range labels {
				k, v, ok := strings.Cut(kv, "=")
				if !ok {
					return fmt.Errorf("label %q has no value; write it as key=value", kv)
				}
				pod.Labels[k] = v
			}
			st, err := l.PodAdd(cmd.Context(), pod)
			if err != nil {
				return err
			}
			for _, a := range st.Addresses {
				fmt.Fprintln(cmd.OutOrStdout(), a)
			}
			return nil
		},
	}
	add.Flags().StringSliceVarP(&labels, "label", "l", nil, "label of the pod, as key=value")
	del := &cobra.Command{
		Use:   "del [NAMESPACE/]NAME",
		Short: "Delete a pod through the CNI plugin",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			return l.PodDel(cmd.Context(), args[0])
		},
	}
	cmd.AddCommand(add, del)
	return cmd
}

func killCmd(f *flags) *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:   "kill NODE PROCESS",
		Short: "Kill a process with SIGKILL; it stays down until it is started",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			if signal == "" {
				return l.Kill(cmd.Context(), args[0], args[1])
			}
			sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(signal), "SIG"))
			if sig == 0 {
				return fmt.Errorf("there is no signal %q; TERM and HUP are some", signal)
			}
			return l.Signal(cmd.Context(), args[0], args[1], syscall.Signal(sig))
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "send this signal instead, after whose effect the process is started again")
	return cmd
}

func startCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "start NODE PROCESS",
		Short: "Start a process that is down",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			return l.Start(cmd.Context(), args[0], args[1])
		},
	}
}

func demoCmd(f *flags) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Bring the demo cluster up and show that it works",
		Long: `demo brings a four-node cluster up, prints its BGP sessions, and walks through all modes of a pool.
It removes everything at the end; with KEEP=1 in the environment it leaves the lab up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return demo(cmd, f, file, "") },
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "another topology, with pods of one pool on two nodes of a subnet and one of another")
	return cmd
}

func walkthroughCmd(f *flags) *cobra.Command {
	var file, doc string
	cmd := &cobra.Command{
		Use:   "walkthrough",
		Short: "Show mode by mode, with routes and captured packets, how pods reach each other, and check every cell",
		Long: `walkthrough brings a four-node cluster up behind a network that acts like a cloud, and goes through
IP-in-IP, plain routing and VXLAN, with the network's source/destination check on and off. For each it shows the
commands, the routes of a node, the packets on the wire, and where lost ones are dropped. It exits with 1 and names
the cell if one is not as it should be. Without root, on a kernel without ipip, it says which rows it cannot show.
With --doc it also writes all that as a page of Markdown. KEEP=1 in the environment leaves the lab up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return demo(cmd, f, file, doc) },
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "another topology, with pods of one pool on two nodes of a subnet and one of another")
	cmd.Flags().StringVar(&doc, "doc", "", "file for the page of Markdown, written if all is as it should be")
	return cmd
}

// demo runs the demo in a lab that is called like the command, unless it is told otherwise.
func demo(cmd *cobra.Command, f *flags, file, doc string) error {
	topology, err := lab.DemoTopology()
	if file != "" {
		topology, err = lab.ReadTopology(file)
	}
	if err != nil {
		return err
	}
	o := lab.DemoOptions{
		Up:   lab.Options{Name: cmd.Name(), StateDir: f.stateDir, BinDir: f.binDir, Topology: topology},
		Keep: os.Getenv("KEEP") == "1", Out: cmd.OutOrStdout(),
	}
	if cmd.Flags().Changed("name") {
		o.Up.Name = f.name
	}
	var page bytes.Buffer
	if doc != "" {
		o.Doc = &page
	}
	if err := lab.Demo(cmd.Context(), o); err != nil || doc == "" {
		return err
	}
	return os.WriteFile(doc, page.Bytes(), 0o644) //nolint:gosec // documentation is for everybody
}

func benchCmd(f *flags) *cobra.Command {
	var plugins string
	cmd := &cobra.Command{
		Use:       "bench [AREA...]",
		Short:     "Measure the demo's cluster beside the same made by hand",
		Long:      "bench prints lines of the form BENCH <name> <value> <unit> [ratio=<x> vs=<what>].\nAreas are: " + strings.Join(lab.BenchAreas(), ", ") + ".",
		ValidArgs: lab.BenchAreas(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Bench(cmd.Context(), lab.BenchOptions{BinDir: f.binDir, Areas: args, Plugins: plugins, Out: cmd.OutOrStdout(), Log: cmd.ErrOrStderr()})
		},
	}
	cmd.Flags().StringVar(&plugins, "plugins", "", "directory with the stock CNI plugins ptp and host-local (default: build them)")
	return cmd
}

func outputFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "output", "o", "table", "table or json")
}

// show prints a result as a table or as JSON.
func show(w io.Writer, format string, v any, table func(io.Writer) error) error {
	switch format {
	case "table":
		return table(w)
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return fmt.Errorf("unknown output %q; use table or json", format)
}
