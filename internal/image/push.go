package image

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Push writes the image to the registry that its reference names, as it is: its digest
// there is Digest. It logs in as `docker login` has left it (~/.docker/config.json, or
// REGISTRY_AUTH_FILE); a registry on the loopback address is spoken to without TLS.
func (i *Image) Push(ctx context.Context) error {
	if err := remote.WriteIndex(i.reference, i.index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("push image %s: %w", i.reference, err)
	}
	return nil
}
