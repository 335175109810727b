package verb

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// conflicts is how often apply reads again what somebody changed meanwhile.
const conflicts = 5

// change is a command that does one thing to each resource in files.
type change struct {
	verb, past string
	do         func(ctx context.Context, c datastore.Client, o api.Object) (done bool, err error)
}

func create(g *globals) *cobra.Command {
	var skipExists bool
	cmd := change{verb: "create", past: "created", do: func(ctx context.Context, c datastore.Client, o api.Object) (bool, error) {
		_, err := c.Create(ctx, o)
		if skipExists && errors.Is(err, datastore.ErrExists) {
			return false, nil
		}
		return err == nil, err
	}}.command(g, "Create resources from files")
	cmd.Flags().BoolVar(&skipExists, "skip-exists", false, "no error for resources that exist")
	return cmd
}

func apply(g *globals) *cobra.Command {
	return change{verb: "apply", past: "applied", do: func(ctx context.Context, c datastore.Client, o api.Object) (bool, error) {
		var err error
		for range conflicts {
			if err = applyOnce(ctx, c, o.DeepCopyObject().(api.Object)); !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) {
				break
			}
		}
		return err == nil, err
	}}.command(g, "Create resources from files, or update them if they exist")
}

func applyOnce(ctx context.Context, c datastore.Client, o api.Object) error {
	old, err := c.Get(ctx, api.KeyOf(o))
	if errors.Is(err, datastore.ErrNotFound) {
		o.SetResourceVersion("")
		_, err = c.Create(ctx, o)
		return err
	}
	if err != nil {
		return err
	}
	succeed(o, old)
	_, err = c.Update(ctx, o)
	return err
}

func replace(g *globals) *cobra.Command {
	return change{verb: "replace", past: "replaced", do: func(ctx context.Context, c datastore.Client, o api.Object) (bool, error) {
		given := o.GetResourceVersion()
		old, err := c.Get(ctx, api.KeyOf(o))
		if err != nil {
			return false, err
		}
		succeed(o, old)
		if given != "" {
			o.SetResourceVersion(given) // the user says which version is meant
		}
		_, err = c.Update(ctx, o)
		return err == nil, err
	}}.command(g, "Replace resources by those in files")
}

// succeed gives an object what the system keeps of the one it replaces.
func succeed(o, old api.Object) {
	o.SetResourceVersion(old.GetResourceVersion())
	o.SetUID(old.GetUID())
	o.SetCreationTimestamp(old.GetCreationTimestamp())
	o.SetFinalizers(old.GetFinalizers())
}

func (v change) command(g *globals, about string) *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use: v.verb + " -f FILE", Short: about, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := in.read(cmd.InOrStdin(), g.namespace)
			if err != nil {
				return err
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				return v.run(ctx, c, objects, cmd.OutOrStdout())
			})
		},
	}
	in.flags(cmd)
	namespaceFlag(cmd, g)
	return cmd
}

// run does it to each object, in order, and stops at the first that fails: what comes later may build on it.
func (v change) run(ctx context.Context, c datastore.Client, objects []api.Object, out io.Writer) error {
	done := 0
	for i, o := range objects {
		if kind := api.KindOf(o); kind.Internal || kind.Name == "ClusterInformation" {
			return v.failed(objects, i, done, fmt.Errorf("%s is kept by the system and cannot be written by hand", api.KeyOf(o)))
		}
		ok, err := v.do(ctx, c, o)
		if err != nil {
			return v.failed(objects, i, done, err)
		}
		if ok {
			done++
		}
	}
	fmt.Fprintf(out, "Successfully %s %d %sresource(s)\n", v.past, done, quotedKind(objects))
	return nil
}

// failed words an error as users of Calico know it (spec §8).
func (v change) failed(objects []api.Object, at, done int, err error) error {
	switch {
	case len(objects) == 1:
		return fmt.Errorf("failed to %s %sresource: [%w]", v.verb, quotedKind(objects), err)
	case done == 0:
		return fmt.Errorf("failed to %s any %sresources: [%w]", v.verb, quotedKind(objects), err)
	}
	return fmt.Errorf("Partial success: %s the first %d out of %d %sresources:\nhit error: %w", v.past, at, len(objects), quotedKind(objects), err) //nolint:revive,staticcheck // the words that scripts look for
}

// quotedKind is the kind, in quotes with a blank, if all objects are of one.
func quotedKind(objects []api.Object) string {
	if len(objects) == 0 {
		return ""
	}
	kind := api.KindOf(objects[0]).Name
	for _, o := range objects {
		if api.KindOf(o).Name != kind {
			return ""
		}
	}
	return "'" + kind + "' "
}

func namespaceFlag(cmd *cobra.Command, g *globals) {
	cmd.Flags().StringVarP(&g.namespace, "namespace", "n", "", "namespace of resources that name none (default \"default\")")
}
