"""``python -m cbam_deploy`` is ``cbam-deploy``."""

from cbam_deploy.cli import main

main()
