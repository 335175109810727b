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
	api.KeepStatus(o, old)
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
				return v.run(ctx, c, objects, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	in.flags(cmd)
	namespaceFlag(cmd, g)
	return cmd
}

// run does it to each object, in order, and stops at the first that fails: what comes later may build on it.
func (v change) run(ctx context.Context, c datastore.Client, objects []api.Object, out, warnings io.Writer) error {
	names := wording{verb: v.verb, past: v.past, keys: keysOf(objects)}
	done := 0
	for i, o := range objects {
		if err := writable(names.keys[i]); err != nil {
			return names.failed(i, done, err)
		}
		ok, err := v.do(ctx, c, o)
		if err != nil {
			return names.failed(i, done, err)
		}
		if ok {
			done++
			if err := warnOfLimit(ctx, c, o, warnings); err != nil {
				return err
			}
		}
	}
	names.succeeded(out, done)
	return nil
}

func keysOf(objects []api.Object) []api.Key {
	keys := make([]api.Key, len(objects))
	for i, o := range objects {
		keys[i] = api.KeyOf(o)
	}
	return keys
}

// writable refuses what the system keeps for itself.
func writable(key api.Key) error {
	if kind, _ := api.LookupKind(key.Kind); kind.Internal || key.Kind == clusterInformation.Kind {
		return fmt.Errorf("%s is kept by the system and cannot be written by hand", key)
	}
	return nil
}

// wording says how a command on resources went, in the words that users of Calico know (spec §8).
type wording struct {
	verb, past string
	keys       []api.Key
}

func (w wording) succeeded(out io.Writer, done int) {
	fmt.Fprintf(out, "Successfully %s %d %sresource(s)\n", w.past, done, w.quotedKind())
}

// failed is the error of the command whose resource number at, from 0, failed after done were done.
func (w wording) failed(at, done int, err error) error {
	switch {
	case len(w.keys) == 1:
		return fmt.Errorf("failed to %s %sresource: [%w]", w.verb, w.quotedKind(), err)
	case done == 0:
		return fmt.Errorf("failed to %s any %sresources: [%w]", w.verb, w.quotedKind(), err)
	}
	return fmt.Errorf("Partial success: %s the first %d out of %d %sresources:\nhit error: %w", w.past, at, len(w.keys), w.quotedKind(), err) //nolint:revive,staticcheck // the words that scripts look for
}

// quotedKind is the kind, in quotes with a blank, if all are of one.
func (w wording) quotedKind() string {
	for _, k := range w.keys {
		if k.Kind != w.keys[0].Kind {
			return ""
		}
	}
	if len(w.keys) == 0 {
		return ""
	}
	return "'" + w.keys[0].Kind + "' "
}

func namespaceFlag(cmd *cobra.Command, g *globals) {
	cmd.Flags().StringVarP(&g.namespace, "namespace", "n", "", "namespace of resources that name none (default \"default\")")
}
