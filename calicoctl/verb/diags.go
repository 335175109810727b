package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/calicoctl/diags"
)

// collection is one run of a command that makes an archive.
type collection struct {
	prefix   string // of the archive's name, before the time
	dir      string // for the archive; empty is the temporary directory
	keep     bool   // the temporary directory stays though the archive is not in it
	parallel int
}

// run collects, telling of it as it goes. What is missing is no failure: the archive says what, and why.
func (c collection) run(cmd *cobra.Command, items []diags.Item) error {
	out := cmd.OutOrStdout()
	temporary, err := os.MkdirTemp("", "calico")
	if err != nil {
		return fmt.Errorf("temporary directory: %w; set TMPDIR to one with room", err)
	}
	fmt.Fprintf(out, "Collecting diagnostics\nUsing temp dir: %s\n", temporary)
	archive := filepath.Join(or(c.dir, temporary), c.prefix+time.Now().Format("20060102_150405")+".tar.gz")
	scratch := filepath.Join(temporary, "scratch")
	err = os.Mkdir(scratch, 0o700)
	var outcomes []diags.Outcome
	if err == nil {
		outcomes, err = diags.Collect(cmd.Context(), items, diags.Options{
			Archive: archive, Scratch: scratch, Progress: out, Parallel: c.parallel, Timeout: routes,
		})
	}
	switch {
	case c.keep:
	case err != nil || c.dir != "":
		err = errors.Join(err, os.RemoveAll(temporary))
	default:
		err = os.RemoveAll(scratch)
	}
	if err != nil {
		return err
	}
	missing := 0
	for _, o := range outcomes {
		if o.Err != nil {
			missing++
		}
	}
	fmt.Fprintf(out, "\nDiags saved to %s\n", archive)
	if missing > 0 {
		fmt.Fprintf(out, "Of %d things %d are missing or not whole; %s in the archive says which, and why.\n", len(outcomes), missing, diags.Index)
	}
	fmt.Fprintln(out, "What looks like a secret was left out. Addresses, names and logs are in it: look through it before you give it to others.")
	return nil
}

// own is what a command of calicoctl itself says, beside the same settings.
func (g *globals) own(args ...string) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		root := New(g.version)
		if g.config != "" {
			args = append(args, "--config", g.config)
		}
		if g.context != "" {
			args = append(args, "--context", g.context)
		}
		root.SetArgs(append(args, "--allow-version-mismatch"))
		root.SetIn(strings.NewReader(""))
		root.SetOut(w)
		root.SetErr(w)
		return root.ExecuteContext(ctx)
	}
}
