package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/integration/lab"
)

func probeCmd(f *flags) *cobra.Command {
	var format string
	var v6 bool
	cmd := &cobra.Command{
		Use:   "probe FROM TO[:PORT]",
		Short: "Try whether a node or pod reaches another, how fast, and which way the packets go",
		Long: `probe sends an ICMP echo request and, to a server that it starts for it, a TCP connection. With a port it
connects to that port only. While it does so it captures on the nodes' uplinks, to tell whether packets
went between nodes as they are or encapsulated.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			rs := []lab.ProbeRequest{{From: args[0], To: args[1], Kind: lab.ProbeICMP, IPv6: v6}, {From: args[0], To: args[1], Kind: lab.ProbeTCP, IPv6: v6}}
			if to, port, ok := strings.Cut(args[1], ":"); ok {
				n, err := strconv.ParseUint(port, 10, 16)
				if err != nil || n == 0 {
					return fmt.Errorf("%q is no port; use 1 to 65535", port)
				}
				rs = []lab.ProbeRequest{{From: args[0], To: to, Kind: lab.ProbeTCP, Port: uint16(n), IPv6: v6}}
			}
			results, err := l.Probes(cmd.Context(), rs)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), format, results, func(w io.Writer) error { return printProbes(w, results) }); err != nil {
				return err
			}
			for _, r := range results {
				if !r.OK {
					return exitStatus(1)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&v6, "ipv6", "6", false, "use the target's IPv6 address")
	outputFlag(cmd, &format)
	return cmd
}

func printProbes(w io.Writer, results []lab.ProbeResult) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FROM\tTO\tTARGET\tKIND\tRESULT\tLATENCY\tPATH\tPACKETS")
	for _, r := range results {
		result, latency := "ok", r.Latency.Round(time.Microsecond).String()
		if !r.OK {
			result, latency = r.Error, "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", r.From, r.To, r.Target, r.Kind, result, latency, r.Path, r.Packets)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if r.Sample != "" {
			fmt.Fprintln(w, "seen:", r.Sample)
		}
	}
	return nil
}

func matrixCmd(f *flags) *cobra.Command {
	var format, mode string
	var v6 bool
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Probe from all nodes and pods to all pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			probe := l.Matrix
			if v6 {
				probe = l.MatrixIPv6
			}
			var want lab.Expectation
			if mode != "" {
				if want, err = l.Expect(cmd.Context(), lab.Mode(mode)); err != nil {
					return err
				}
			}
			m, err := probe(cmd.Context(), want)
			if err != nil {
				return err
			}
			if want == nil {
				want = func(from, to string) lab.Path { return m.Cell(from, to).Path }
			}
			if err := show(cmd.OutOrStdout(), format, m, func(w io.Writer) error { return m.Print(w, want) }); err != nil {
				return err
			}
			if wrong := m.Wrong(want); len(wrong) > 0 {
				return errors.New(strings.Join(wrong, "\n     "))
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&v6, "ipv6", "6", false, "probe over IPv6")
	cmd.Flags().StringVar(&mode, "expect", "", "fail unless the matrix is that of a pool in this mode: direct, ipip, ipip-cross-subnet, vxlan or vxlan-cross-subnet")
	outputFlag(cmd, &format)
	return cmd
}

func captureCmd(f *flags) *cobra.Command {
	var file, host string
	var count int
	cmd := &cobra.Command{
		Use:   "capture NODE-or-POD INTERFACE",
		Short: "Print packets as they pass, with the headers inside an encapsulation; or write them to a pcap file",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			var only netip.Addr
			if host != "" {
				if only, err = netip.ParseAddr(host); err != nil {
					return fmt.Errorf("%q is no address", host)
				}
			}
			c, err := l.Capture(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			emit, done, err := emitter(cmd.OutOrStdout(), file)
			if err != nil {
				return err
			}
			return errors.Join(capture(cmd.Context(), c, only, count, emit), done())
		},
	}
	cmd.Flags().StringVarP(&file, "write", "w", "", "write a pcap file instead (- is standard output)")
	cmd.Flags().StringVar(&host, "host", "", "only packets from or to this address, outside or inside")
	cmd.Flags().IntVarP(&count, "count", "c", 0, "end after this many packets")
	return cmd
}

// emitter returns what to do with each packet, and what to do at the end.
func emitter(out io.Writer, file string) (emit func(lab.Packet) error, done func() error, err error) {
	if file == "" {
		return func(p lab.Packet) error {
			_, err := fmt.Fprintln(out, p)
			return err
		}, func() error { return nil }, nil
	}
	done = func() error { return nil }
	if file != "-" {
		fl, err := os.Create(file)
		if err != nil {
			return nil, nil, err
		}
		out, done = fl, fl.Close
	}
	w, err := lab.NewPcapWriter(out)
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return w.Write, done, nil
}

func capture(ctx context.Context, c *lab.Capture, only netip.Addr, count int, emit func(lab.Packet) error) error {
	for n := 0; count == 0 || n < count; {
		p, err := c.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if only.IsValid() && only != p.Outer.Src && only != p.Outer.Dst && only != p.Inner.Src && only != p.Inner.Dst {
			continue
		}
		if err := emit(p); err != nil {
			return err
		}
		n++
	}
	return nil
}
