// Command images builds the container images of Muslin as archives that container runtimes import:
// ctr -n k8s.io images import bin/images/node.tar. It is run in the root of the repository.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
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
		if err := build(ctx, s, i); err != nil {
			return err
		}
	}
	return nil
}

// build builds the programs of an image and writes its archive, which is there whole or not at all.
func build(ctx context.Context, s settings, i image.Image) (err error) {
	s.Files = map[string]string{}
	programs, err := filepath.Abs(filepath.Join(s.dir, "programs"))
	if err != nil {
		return err
	}
	for _, c := range i.Contents {
		switch {
		case c.File != "":
			s.Files[c.Path] = filepath.Join(s.repository, c.File)
		case c.Program != "":
			if s.Files[c.Path], err = image.Build(ctx, s.repository, programs, c.Program, s.Tag, s.Arch); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil { //nolint:gosec // there is no secret in it
		return err
	}
	archive := filepath.Join(s.dir, i.Name+".tar")
	f, err := os.Create(archive + ".new")
	if err != nil {
		return err
	}
	digest, err := image.Write(f, i, s.Made)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	fmt.Printf("%s %s %s\n", archive, image.Reference(s.Prefix, i.Name, s.Tag), digest)
	return os.Rename(f.Name(), archive)
}
