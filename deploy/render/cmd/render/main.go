// Command render writes the manifests of an installation, from an installer's description of a cluster or from values as the
// chart has them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/muslin-net/muslin/deploy"
	"github.com/muslin-net/muslin/deploy/render"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "render:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("render", flag.ContinueOnError)
	description := flags.String("f", "", "file with an installer's description of the cluster (a ClusterConfiguration of Konvoy, an Installation of the Tigera operator), - for standard input")
	values := flags.String("values", "", "file with values, as deploy/chart/values.yaml has them; they win over what the description says")
	crds := flags.Bool("crds", true, "begin with the CRDs")
	dir := flags.String("o", "", "directory to write one file for each part to, instead of all to standard output")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("argument %q is one too many; give the description of the cluster by -f", flags.Arg(0))
	}
	v := render.Defaults()
	if *description != "" {
		text, err := read(*description, in)
		if err != nil {
			return err
		}
		if v, err = render.Parse(*description, text); err != nil {
			return err
		}
	}
	if *values != "" {
		text, err := read(*values, in)
		if err != nil {
			return err
		}
		if v, err = v.With(text); err != nil {
			return fmt.Errorf("%s: %w", *values, err)
		}
	}
	files, err := render.Manifests(v)
	if err != nil {
		return err
	}
	if *crds {
		files = append(deploy.CRDs(), files...)
	}
	if *dir == "" {
		_, err = out.Write(render.Join(files...))
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(*dir, f.Name), f.Text, 0o644); err != nil { //nolint:gosec // there is no secret in it
			return err
		}
	}
	return nil
}

func read(file string, in io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(file)
}
