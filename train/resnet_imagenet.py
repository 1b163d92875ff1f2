"""Train a ResNet, checkpoint every epoch, average the latest k checkpoints, report what LAWA saves.

python train/resnet_imagenet.py --lawa_k 5                                         ResNet-50, ImageNet
python train/resnet_imagenet.py --config configs/resnet_digits.py --lawa_k 5       half a minute on a CPU
python train/resnet_imagenet.py --config configs/resnet_digits.py --resume         go on after a stop
python train/resnet_imagenet.py --evaluate RUN --lawa_k 5 --end 10 20 30           averages of a run
"""
