package verb

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func deleteCommand(g *globals) *cobra.Command {
	var in input
	var skip bool
	cmd := &cobra.Command{
		Use: "delete (KIND NAME... | -f FILE)", Short: "Delete resources",
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := g.keys(cmd, in, args)
			if err != nil {
				return err
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				return remove(ctx, c, keys, skip, cmd)
			})
		},
	}
	in.flags(cmd)
	cmd.Flags().BoolVarP(&skip, "skip-not-exists", "s", false, "no error for resources that do not exist")
	namespaceFlag(cmd, g)
	return cmd
}

// keys are the resources that arguments or files name.
func (g *globals) keys(cmd *cobra.Command, in input, args []string) ([]api.Key, error) {
	if len(in.files) > 0 {
		objects, err := in.read(cmd.InOrStdin(), g.namespace)
		return keysOf(objects), err
	}
	if len(args) < 2 {
		return nil, errors.New("name a kind and at least one resource, or give a file with -f")
	}
	kind, err := userKind(args[0])
	if err != nil {
		return nil, err
	}
	keys := make([]api.Key, 0, len(args)-1)
	for _, name := range args[1:] {
		keys = append(keys, g.key(kind, name))
	}
	return keys, nil
}

func (g *globals) key(kind api.Kind, name string) api.Key {
	k := api.Key{Kind: kind.Name, Name: name}
	if kind.Namespaced {
		k.Namespace = or(g.namespace, defaultNamespace)
	}
	return k
}

func remove(ctx context.Context, c datastore.Client, keys []api.Key, skip bool, cmd *cobra.Command) error {
	names := wording{verb: "delete", past: "deleted", keys: keys}
	done := 0
	for i, k := range keys {
		err := writable(k)
		switch {
		case err != nil:
		case k.Kind == "IPPool":
			err = deletePool(ctx, c, k)
		default:
			_, err = c.Delete(ctx, k, datastore.Precondition{})
		}
		switch {
		case err == nil:
			done++
		case skip && errors.Is(err, datastore.ErrNotFound):
		default:
			return names.failed(i, done, err)
		}
	}
	names.succeeded(cmd.OutOrStdout(), done)
	return nil
}

// userKind finds a kind that users may name.
func userKind(name string) (api.Kind, error) {
	kind, ok := api.LookupKind(name)
	if !ok || kind.Internal {
		return api.Kind{}, fmt.Errorf("resource type '%s' is not supported; the types are %s", name, userKinds())
	}
	return kind, nil
}

func userKinds() string {
	out := ""
	for _, k := range api.Kinds() {
		if k.Internal {
			continue
		}
		if out != "" {
			out += ", "
		}
		out += k.Name
	}
	return out
}
