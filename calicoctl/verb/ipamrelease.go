package verb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/audit"
	"github.com/muslin-net/muslin/ipam/block"
)

func ipamRelease(g *globals) *cobra.Command {
	var ip string
	var reports []string
	var force bool
	cmd := &cobra.Command{
		Use: "release (--ip=IP | --from-report=FILE...)", Short: "Release an address, or all that reports agree to be lost", Args: cobra.NoArgs,
		Long: "Release an address, or all that reports agree to be lost.\n\n" +
			"It does not take the address from an endpoint that uses it: release only what is really lost. With several reports,\n" +
			"made some time apart, what was just being assigned in one of them is not touched. One of them has to be made while the\n" +
			"datastore is locked (calicoctl datastore migrate lock).",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (ip == "") == (len(reports) == 0) {
				return errors.New("give either --ip or --from-report")
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				if ip != "" {
					return releaseOne(ctx, cmd.OutOrStdout(), c, ip)
				}
				return g.releaseReported(ctx, cmd.OutOrStdout(), c, reports, force)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&ip, "ip", "", "address to release")
	flags.StringArrayVar(&reports, "from-report", nil, "file of calicoctl ipam check -o; release what is lost in all of those given")
	flags.BoolVar(&force, "force", false, "release although the datastore is not locked, or another version made the report")
	return cmd
}

func releaseOne(ctx context.Context, out io.Writer, c datastore.Client, text string) error {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("flag --ip: %q is not an address", text)
	}
	unknown, err := alloc.New(c, alloc.Options{}).Release(ctx, block.Release{Addr: addr})
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		return fmt.Errorf("IP address %s is not assigned", addr)
	}
	fmt.Fprintf(out, "Successfully released IP address %s\n", addr)
	return nil
}

// releaseReported releases what reports agree on. Each release names the handle and the sequence number that the reports
// have, so that what was assigned anew since is left alone.
func (g *globals) releaseReported(ctx context.Context, out io.Writer, c datastore.Client, files []string, force bool) error {
	info, err := information(ctx, c)
	if err != nil {
		return err
	}
	var reports []audit.Report
	for _, file := range files {
		r, err := readReport(file)
		if err != nil {
			return err
		}
		switch {
		case r.ClusterGUID != info.Spec.ClusterGUID:
			return fmt.Errorf("cluster does not match the provided report (%s): mismatched cluster GUID. Refusing to release", file)
		case r.Version != g.version && !force:
			return fmt.Errorf("the provided report (%s) was produced using a different version (%s) of calicoctl. Refusing to release", file, r.Version)
		case r.Version != g.version:
			fmt.Fprintln(out, "WARNING: Report was produced using a different version of calicoctl. Ignoring due to --force option")
		}
		reports = append(reports, r)
	}
	if !slices.ContainsFunc(reports, func(r audit.Report) bool { return r.ClusterInfoRevision == info.ResourceVersion }) {
		return errors.New("the provided reports are all stale - at least one should be up-to-date. Please generate a new report while the data store is locked and try again")
	}
	if !info.Locked() {
		if !force {
			return errors.New("data store is not locked. Either lock the data store, or re-run with --force")
		}
		fmt.Fprintln(out, "WARNING: Data store is not locked. Ignoring due to --force option")
	}
	addrs, handles, err := audit.Lost(reports...)
	if err != nil {
		return err
	}
	err = errors.Join(releaseAddrs(ctx, out, c, addrs), releaseHandles(ctx, out, c, handles))
	if err == nil && info.Locked() {
		fmt.Fprintln(out, "You may now unlock the data store.")
	}
	return err
}

func readReport(file string) (r audit.Report, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, fmt.Errorf("report %s: %w; make one with calicoctl ipam check -o FILE", file, err)
	}
	return r, nil
}

func releaseAddrs(ctx context.Context, out io.Writer, c datastore.Client, addrs []block.Release) error {
	if len(addrs) == 0 {
		fmt.Fprintln(out, "Report didn't contain any leaked IPs to clean up.")
		return nil
	}
	fmt.Fprintf(out, "Releasing %d old IPs...\n", len(addrs))
	unknown, err := alloc.New(c, alloc.Options{}).Release(ctx, addrs...)
	if err != nil {
		return fmt.Errorf("some addresses were not released; they may have changed since the report, so make a new one: %w", err)
	}
	fmt.Fprintf(out, "Released %d IPs successfully\n", len(addrs)-len(unknown))
	if len(unknown) > 0 {
		fmt.Fprintf(out, "%d addresses marked as leaked in the report had already been cleaned up.\n", len(unknown))
	}
	return nil
}

func releaseHandles(ctx context.Context, out io.Writer, c datastore.Client, handles []audit.ReportHandle) error {
	if len(handles) == 0 {
		fmt.Fprintln(out, "Report didn't contain any handles to clean up.")
		return nil
	}
	released, skipped := 0, 0
	var errs []error
	for _, h := range handles {
		_, err := c.Delete(ctx, api.Key{Kind: "IPAMHandle", Name: h.ID}, datastore.Precondition{Revision: h.Revision})
		switch {
		case err == nil:
			released++
		case errors.Is(err, datastore.ErrNotFound), errors.Is(err, datastore.ErrConflict):
			skipped++ // somebody has used it since
		default:
			errs = append(errs, err)
		}
	}
	fmt.Fprintf(out, "Released %d handles; %d skipped; %d errors.\n", released, skipped, len(errs))
	return errors.Join(errs...)
}
