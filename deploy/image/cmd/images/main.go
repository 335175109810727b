// Command images builds the container images of Muslin as archives that container runtimes import:
// ctr -n k8s.io images import bin/images/node.tar. It is run in the root of the repository.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"

	"github.com/muslin-net/muslin/deploy/image"
	"github.com/muslin-net/muslin/deploy/render"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

type settings struct {
	image.Made
	dir, repository string
}

func run(ctx context.Context, args []string) error {
	defaults := render.Defaults().Image // what the manifests ask for
	var s settings
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	flags.StringVar(&s.Prefix, "prefix", defaults.Prefix, "what the names of images begin with")
	flags.StringVar(&s.Tag, "tag", defaults.Tag, "tag of the images, and version of what is in them")
	flags.StringVar(&s.Arch, "arch", runtime.GOARCH, "architecture, as Go names it")
	flags.StringVar(&s.dir, "o", "bin/images", "directory to write the archives to")
	flags.StringVar(&s.repository, "C", ".", "root of the repository")
	if err := flags.Parse(args); err != nil {
		return err
	}
	all, err := image.List()
	if err != nil {
		return err
	}
	for _, name := range flags.Args() {
		if !slices.ContainsFunc(all, func(i image.Image) bool { return i.Name == name }) {
			return fmt.Errorf("there is no image %q; see deploy/image/images.yaml", name)
		}
	}
	for _, i := range all {
		if flags.NArg() > 0 && !slices.Contains(flags.Args(), i.Name) {
			continue
		}
		archive, digest, err := image.Archive(ctx, s.repository, s.dir, i, s.Made)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s %s\n", archive, image.Reference(s.Prefix, i.Name, s.Tag), digest)
	}
	return nil
}
